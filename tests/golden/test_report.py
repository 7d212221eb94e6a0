"""The rollout's report, golden: one rollout with every state, as Markdown, HTML and JSON.

After a wanted change: `python -m tests.golden.test_report` writes the files anew; read what differs before committing.
"""

import json
import xml.etree.ElementTree as ET
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from ops.checks.rollout.model import Account, Preflight, Rollout, Run, rollout
from ops.checks.rollout.render import as_dict, html, markdown
from schemas.vocabulary import JobStatus

GOLDEN = Path(__file__).parent / "report"
NOW = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)


def run(status: JobStatus, started: datetime, total: int, done: int, **more: object) -> Run:
    fields = {"updated_at": NOW - timedelta(seconds=5), "finished_at": None, **more}
    return Run(status=status, started_at=started, rows_total=total, rows_done=done, **fields)  # type: ignore[arg-type]


def example() -> Rollout:
    """Return a rollout in which each state and each gate is there once."""
    hours = lambda count: NOW - timedelta(hours=count)  # noqa: E731
    completed = datetime(2026, 3, 6, 2, 0, tzinfo=UTC)
    ready = Preflight(NOW, (), 40_000)
    accounts = [
        Account(
            "alpha", flag=True,
            run=run(JobStatus.COMPLETED, completed - timedelta(hours=3), 3_000_000, 3_000_000, finished_at=completed),
        ),
        Account("bravo", flag=True, run=run(JobStatus.IN_PROGRESS, hours(2), 15_000_000, 5_000_000)),
        Account("charlie", flag=True, run=run(JobStatus.IN_PROGRESS, hours(20), 10_000_000, 7_500_000)),
        Account("delta", flag=True, run=run(JobStatus.IN_PROGRESS, hours(20), 10_000_000, 2_000_000)),
        Account("echo", run=run(JobStatus.HALTED, hours(30), 800_000, 100_000, error="failure rate 0.12")),
        Account("foxtrot", run=run(JobStatus.FAILED, hours(40), 500_000, 499_990, error="10 rows lack a document")),
        Account("golf", run=run(JobStatus.IN_PROGRESS, hours(1), 90_000, 10, has_runner=False)),
        Account("hotel", due=date(2026, 3, 31)),
        Account("india", preflight=Preflight(NOW, ("contacts_coverage", "source_page_query"), 1_200_000)),
        Account("juliet", preflight=ready),
        Account("kilo <b>|", flag=True, preflight=ready, due=date(2026, 3, 1)),
        Account("lima", run=run(JobStatus.ROLLED_BACK, hours(90), 70_000, 70_000)),
        Account("mike", flag=True, run=run(JobStatus.IN_PROGRESS, hours(5), 60_000, 50_000, updated_at=hours(4))),
    ]  # fmt: skip
    return rollout(accounts, NOW)


def rendered() -> dict[str, str]:
    found = example()
    return {
        "report.md": markdown(found),
        "report.html": html(found),
        "report.json": json.dumps(as_dict(found), indent=2) + "\n",
    }


@pytest.mark.parametrize("name", ["report.md", "report.html", "report.json"])
def test_the_report_is_as_it_was_agreed(name: str) -> None:
    assert rendered()[name] == (GOLDEN / name).read_text("utf-8")


def test_the_page_needs_nothing_from_anywhere_and_names_cannot_break_it() -> None:
    page = rendered()["report.html"]
    assert "kilo &lt;b&gt;|" in page
    for outside in ("http:", "https:", "src=", "href=", "<script", "url("):
        assert outside not in page
    figure = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    lines = figure.findall("polyline")
    assert len(lines) == 2
    assert all(len(line.get("points", "").split()) == len(example().burn_up) for line in lines)


if __name__ == "__main__":
    for file, text in rendered().items():
        (GOLDEN / file).write_text(text, "utf-8")
