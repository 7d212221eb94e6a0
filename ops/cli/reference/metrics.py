"""Every metric of the data path and of the jobs."""

from ops.cli.reference.text import MADE, table
from schemas.process import metrics
from schemas.process.metrics import Metric

HEAD = f"""# Metrics

{MADE}

A process serves its metrics at `CRM_REPLAY_METRICS_PORT` (see [settings](settings.md)), a runner with a port of
its own those of its workers, too. The control plane has those of all jobs and its own (`crm_control_*`) at `/metrics`.
Labels are bounded: closed lists, and accounts up to {metrics.ACCOUNTS_MAX} a process.

Alert rules: `ops/prometheus/rules.yml`; dashboards: `ops/grafana/`.
"""
SECTIONS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    ("Producer", metrics.PRODUCER),
    ("Processors", metrics.PROCESSORS),
    ("Processors of a live feed, in addition", metrics.LIVE),
    ("Sink", metrics.SINK),
    ("Jobs, from the control plane", metrics.JOBS),
    ("Enrichments, from the control plane", metrics.ENRICHMENTS),
    ("Runners with a port of their own", metrics.RUNNER),
    ("Each process", metrics.PROCESS),
)


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for title, found in SECTIONS:
        rows = [
            (f"`{each.full_name}`", each.kind.value, ", ".join(f"`{label}`" for label in each.labels), each.help)
            for each in found
        ]
        parts.append(f"\n## {title}\n\n{table(('name', 'kind', 'labels', 'what'), rows)}")
    return "".join(parts)
