"""One port for the metrics of a runner's workers: who is asked, what is told, and what of one that does not answer."""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.runner import worker_metrics
from ops.runner.worker_metrics import gathering, targets_in
from schemas.errors import BadInputError
from schemas.process.exposition import of_children, serving
from schemas.process.metrics import Value
from tests.fixtures.services import _free_port


def told(port: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return what a runner says: labels and value of each sample, by its name and type."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault((sample.name, family.type), []).append({**sample.labels, "value": sample.value})
    assert text.count("# TYPE crm_replay_process_info ") == 1
    return found


def worker(name: str, environ: dict[str, str], account: str, processed: int) -> Any:
    """Serve as a worker does that this environment is handed to."""
    of_worker = {**environ, **of_children(environ), "CRM_REPLAY_WORKER": name}
    values = [
        Value("records_processed_total", processed),
        Value("outcomes_total", processed, {"outcome": "skip", "reason": 'of "quotes" and \\'}),
    ]
    return serving("processors", lambda: values, about={"account": account}, environ=of_worker)


@contextmanager
def answering(with_text: bytes) -> Iterator[str]:
    """Give the address of a server that always says the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(with_text)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def announce(directory: Path, name: str, address: str) -> None:
    entry = [{"targets": [address], "labels": {"role": "sink", "worker": name}}]
    (directory / f"{name}.json").write_text(json.dumps(entry))


@pytest.fixture
def environ() -> dict[str, str]:
    return {"CRM_REPLAY_METRICS_PORT": str(_free_port())}


def test_a_runner_tells_what_its_workers_say_under_the_labels_of_targets(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with gathering("runner", tmp_path, environ) as port:
        assert port == int(environ["CRM_REPLAY_METRICS_PORT"])
        with worker("h-a", environ, "acme", 3), worker("h-b", environ, "beta", 4):
            found = told(port)
            assert {
                (labels["worker"], labels["account"], labels["role"], labels["value"])
                for labels in found["crm_replay_records_processed_total", "counter"]
            } == {("h-a", "acme", "processors", 3.0), ("h-b", "beta", "processors", 4.0)}
            assert {labels["reason"] for labels in found["crm_replay_outcomes_total", "counter"]} == {
                'of "quotes" and \\'
            }
            assert {labels["worker"]: labels["value"] for labels in found["crm_replay_worker_up", "gauge"]} == {
                "h-a": 1.0,
                "h-b": 1.0,
            }
            roles = sorted(labels["role"] for labels in found["crm_replay_process_info", "gauge"])
            assert roles == ["processors", "processors", "runner"]
            assert len(found["process_resident_memory_bytes", "gauge"]) == 3
        assert ("crm_replay_worker_up", "gauge") not in told(port)  # those that end have no file any more
        announced_in = Path(environ["CRM_REPLAY_METRICS_DIR"])
        assert announced_in.is_dir()
    assert "CRM_REPLAY_METRICS_DIR" not in environ
    assert not announced_in.exists()


def test_a_worker_that_cannot_be_asked_is_down_and_the_others_are_told(environ: dict[str, str], tmp_path: Path) -> None:
    environ["CRM_REPLAY_METRICS_DIR"] = str(tmp_path / "given")
    with (
        gathering("runner", tmp_path, environ) as port,
        worker("h-a", environ, "acme", 3),
        answering(b"<html>this is no metrics page</html>") as other,
    ):
        directory = tmp_path / "given"
        announce(directory, "killed", f"127.0.0.1:{_free_port()}")
        announce(directory, "strange", other)
        (directory / "half.json").write_text('[{"targets":')
        assert [target.labels["worker"] for target in targets_in(directory)] == ["h-a", "killed", "strange"]
        assert port is not None
        found = told(port)
        assert {labels["worker"]: labels["value"] for labels in found["crm_replay_worker_up", "gauge"]} == {
            "h-a": 1.0,
            "killed": 0.0,
            "strange": 0.0,
        }
        assert len(found["crm_replay_records_processed_total", "counter"]) == 1
    assert directory.is_dir()  # it is not ours


@pytest.mark.parametrize("port", ["", "0"])
def test_where_each_process_is_a_target_a_runner_tells_nothing(port: str, tmp_path: Path) -> None:
    environ = {"CRM_REPLAY_METRICS_PORT": port}
    with gathering("runner", tmp_path, environ) as found:
        assert found is None
        assert "CRM_REPLAY_METRICS_DIR" not in environ


def test_a_port_that_cannot_be_had_is_one_line(environ: dict[str, str], tmp_path: Path) -> None:
    with (
        gathering("runner", tmp_path, environ),
        pytest.raises(BadInputError, match="metrics cannot be served on"),
        gathering("runner", tmp_path / "other", dict(environ)),
    ):
        pass
    with (
        pytest.raises(BadInputError, match="=metrics is no port"),
        gathering("runner", tmp_path, {"CRM_REPLAY_METRICS_PORT": "metrics"}),
    ):
        pass


def test_no_proxy_is_asked_for_a_worker(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with gathering("runner", tmp_path, environ), worker("h-a", environ, "acme", 3):
        (target,) = targets_in(Path(environ["CRM_REPLAY_METRICS_DIR"]))
        assert "crm_replay_records_processed_total 3.0" in (worker_metrics._ask(target) or "")
    assert os.environ["http_proxy"]
