"""I/O: the metrics of this process and of all workers that it starts, at one port.

Where Prometheus can read files, workers announce themselves in a directory (`schemas.process.exposition`), and this is
not needed. Where it cannot, as in a cluster that discovers pods and their ports, CRM_REPLAY_METRICS_PORT of a runner
sets the port: its workers use any free ports, and the runner serves their metrics with its own, under the labels that
they would have as targets. A worker that does not answer has `crm_replay_worker_up` 0, as a target would have `up` 0.
"""

import contextlib
import json
import os
import shutil
import socket
import urllib.request
from collections.abc import Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schemas.process.exposition import DIRECTORY_VARIABLE, Collected, asked_port, listening, of_process
from schemas.process.metrics import METRICS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

ASK_TIMEOUT_S = 3.0  # Prometheus gives up after ten
ASKED_AT_ONCE = 16
ANSWER_BYTES_MAX = 4 * 1024 * 1024
UP = METRICS["worker_up"]

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # workers are on this host, not behind a proxy


class Target(NamedTuple):
    """A process that serves metrics: its address and labels."""

    address: str
    labels: Mapping[str, str]


def targets_in(directory: Path) -> list[Target]:
    """Return the processes that have announced themselves, by the names of their files."""
    found = []
    for file in sorted(directory.glob("*.json")):
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8"))
            found.append(Target(entry["targets"][0], entry["labels"]))
        except (OSError, ValueError, LookupError, TypeError):  # it has just ended
            continue
    return found


class Gathered:
    """A Prometheus collector of the metrics of the workers and of this process."""

    def __init__(self, directory: Path, own: "CollectorRegistry", labels: Mapping[str, str]) -> None:
        """`directory` is where workers announce themselves; `labels` are those of this process."""
        self._directory = directory
        self._own = own
        self._labels = labels

    def describe(self) -> "list[Metric]":
        """Return nothing: the families depend on the workers that run."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield every family of any process, with the samples of all."""
        from prometheus_client import generate_latest
        from prometheus_client.core import Metric

        targets = targets_in(self._directory)
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            texts = list(threads.map(_ask, targets))
        families: dict[str, Metric] = {}
        _add(families, generate_latest(self._own).decode(), self._labels)
        ups = Metric(UP.full_name, UP.help, UP.kind.value)
        for target, text in zip(targets, texts, strict=True):
            labels = {name: target.labels.get(name, "") for name in UP.labels}
            ups.add_sample(UP.full_name, labels, float(text is not None))
            if text is not None:
                _add(families, text, target.labels)
        yield ups
        yield from families.values()


def _ask(target: Target) -> str | None:
    """Return the metrics of a process; None if it does not answer in Prometheus's text format."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with _opener.open(f"http://{target.address}/metrics", timeout=ASK_TIMEOUT_S) as answer:
            text = str(answer.read(ANSWER_BYTES_MAX).decode())
        list(text_string_to_metric_families(text))
    except (OSError, ValueError):
        return None
    return text


def _add(families: "dict[str, Metric]", text: str, labels: Mapping[str, str]) -> None:
    """Add the samples in a text, with these labels where they have none of that name."""
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    for found in text_string_to_metric_families(text):
        family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
        for sample in found.samples:
            family.add_sample(sample.name, {**labels, **sample.labels}, sample.value)


@contextlib.contextmanager
def gathering(role: str, home: Path, environ: MutableMapping[str, str] = os.environ) -> Iterator[int | None]:
    """Serve all metrics while the context lasts, if the environment names a port; yield the port, or None.

    Workers that are started meanwhile with `environ` announce themselves in its directory. Raises BadInputError for
    a port that cannot be opened.
    """
    asked = asked_port(environ)
    if not asked:  # not wanted, or each process is a target of its own
        yield None
        return
    from prometheus_client import CollectorRegistry

    given = environ.get(DIRECTORY_VARIABLE, "")
    directory = Path(given or home / "metrics" / f"of-{os.getpid()}").absolute()
    directory.mkdir(parents=True, exist_ok=True)
    environ[DIRECTORY_VARIABLE] = str(directory)
    labels = {"role": role, "worker": environ.get("CRM_REPLAY_WORKER") or f"{socket.gethostname()}-{role}"}
    registry = CollectorRegistry()
    registry.register(Gathered(directory, _of_process(role), labels))
    try:
        with listening(asked, registry, environ) as (_, port):
            yield port
    finally:
        if not given:
            environ.pop(DIRECTORY_VARIABLE, None)
            shutil.rmtree(directory, ignore_errors=True)


def _of_process(role: str) -> "CollectorRegistry":
    """Return this process's own metrics: memory, CPU, and that it is up."""
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    here = of_process({"role": role, "account": "", "job_id": "", "run": ""})
    registry.register(Collected(lambda: here))  # type: ignore[arg-type]
    return registry
