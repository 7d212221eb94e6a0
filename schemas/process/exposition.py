"""A process's metrics over HTTP for Prometheus, and a file with its address for service discovery (`file_sd_configs`).

Served only if `CRM_REPLAY_METRICS_PORT` is set (0: any free port); `CRM_REPLAY_METRICS_DIR` is the directory where
`<worker>.json` announces the address of a process.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.compiled import COMPILED, hot_paths
from schemas.errors import BadInputError
from schemas.process.liveness import Liveness
from schemas.process.metrics import METRICS, Kind, Value

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORT_VARIABLE, ADDRESS_VARIABLE, DIRECTORY_VARIABLE = (
    "CRM_REPLAY_METRICS_PORT",
    "CRM_REPLAY_METRICS_ADDRESS",
    "CRM_REPLAY_METRICS_DIR",
)


def of_children(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables for child processes: any free port, as they cannot share this process's."""
    return {PORT_VARIABLE: "0"} if environ.get(PORT_VARIABLE) else {}


class Collected:
    """A Prometheus collector that calls `read` for the values at each scrape."""

    def __init__(self, read: Callable[[], Iterable[Value]]) -> None:
        """`read` is called in another thread and must have no side effects."""
        self._read = read

    def describe(self) -> list[object]:
        """Return nothing: the metrics vary over time."""
        return []

    def collect(self) -> Iterator[object]:
        """Yield a family for each metric that has a value now; raises KeyError for an undeclared name."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for value in self._read():
            metric = METRICS[value.metric]
            family = families.get(metric.name)
            if family is None:
                kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
                family = families[metric.name] = kind(metric.full_name, metric.help, labels=metric.labels)
            given = value.labels or {}
            family.add_metric([given[label] for label in metric.labels], value.value)
        yield from families.values()


@contextlib.contextmanager
def serving(
    role: str,
    read: Callable[[], Iterable[Value]],
    *,
    about: Mapping[str, str] | None = None,
    liveness: Liveness | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[int | None]:
    """Serve the values while the context lasts; yield the port, or None if the environment sets none.

    With `liveness` its times are metrics, and the port answers /livez and /readyz with 200 or 503. `about` are
    labels of `process_info`: account, job_id, run. Raises BadInputError for an invalid or used port.
    """
    asked = asked_port(environ)
    if asked is None:
        yield None
        return
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

    labels = {"role": role, "account": "", "job_id": "", "run": "", **(about or {})}
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    here = of_process(labels)
    moved = liveness.values if liveness is not None else list
    registry.register(Collected(lambda: [*read(), *moved(), *here]))  # type: ignore[arg-type]
    with (
        listening(asked, registry, environ, liveness) as (address, port),
        _announced(f"{address}:{port}", role, labels, environ),
    ):
        yield port


def of_process(labels: Mapping[str, str]) -> tuple[Value, ...]:
    """Return the metrics of the process itself; `labels` are those of `process_info`."""
    return Value("process_info", 1, labels), Value("hot_paths_compiled", hot_paths() == COMPILED)


def asked_port(environ: Mapping[str, str]) -> int | None:
    """Return the port in the environment, None if it is not set. Raises BadInputError for an invalid port."""
    asked = environ.get(PORT_VARIABLE, "")
    if not asked:
        return None
    if not asked.isdecimal() or int(asked) > 65_535:
        raise BadInputError(f"{PORT_VARIABLE}={asked} is no port", "0 to 65535; 0 for any free port")
    return int(asked)


@contextlib.contextmanager
def listening(
    asked: int,
    registry: "CollectorRegistry",
    environ: Mapping[str, str] = os.environ,
    liveness: Liveness | None = None,
) -> Iterator[tuple[str, int]]:
    """Serve a registry, and the probes of `liveness`, while the context lasts; yield address and port.

    Raises BadInputError if the port is in use.
    """
    from prometheus_client import start_http_server

    address = environ.get(ADDRESS_VARIABLE) or "127.0.0.1"
    try:
        server, thread = start_http_server(asked, addr=address, registry=registry)
    except OSError as error:
        raise BadInputError(
            f"metrics cannot be served on {address}:{asked} ({error.strerror or error})",
            f"choose another {PORT_VARIABLE}, or 0 for any free port",
        ) from None
    if liveness is not None:
        server.set_app(_with_probes(server.get_app(), liveness))
    try:
        yield address, int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _with_probes(metrics: Any, liveness: Liveness) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers the probes, and else as `metrics` does."""
    probes = {"/livez": lambda: liveness.is_live, "/readyz": lambda: liveness.ready and liveness.is_live}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        probe = probes.get(environ["PATH_INFO"])
        if probe is None:
            answered: Iterable[bytes] = metrics(environ, start_response)
            return answered
        passed = probe()
        state = "ready" if liveness.ready else "starting"
        body = f"{'ok' if passed else 'failed'}: {state}, last turn {liveness.since_turn_s:.1f} s ago\n".encode()
        start_response("200 OK" if passed else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [body]

    return app


@contextlib.contextmanager
def _announced(target: str, role: str, labels: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[None]:
    """Keep a file in the directory that Prometheus watches; the file of a killed process is overwritten by the next."""
    directory = environ.get(DIRECTORY_VARIABLE, "")
    if not directory:
        yield
        return
    host = target.rsplit(":", 1)[0]
    reachable = target if host not in ("0.0.0.0", "::") else target.replace(host, socket.gethostname())  # noqa: S104
    worker = environ.get("CRM_REPLAY_WORKER") or f"{role}-{os.getpid()}"
    name = "".join(character if character.isalnum() or character in "-_." else "_" for character in worker)
    account = labels["account"]
    file = Path(directory) / f"{name}{'.' + str(labels['run']) if account else ''}.json"
    entry = [
        {
            "targets": [reachable],
            "labels": {"role": role, "worker": worker, **({"account": account} if account else {})},
        }
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")  # replaced atomically: Prometheus may read at any time
    unfinished.write_text(json.dumps(entry), encoding="utf-8")
    unfinished.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
