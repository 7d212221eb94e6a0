"""Public metric names: declared once, served as Prometheus reads them, bounded."""

import json
import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from processors.metrics import ProcessorMetrics
from producer.metrics import Counters
from schemas.compiled import COMPILED, hot_paths
from schemas.errors import BadInputError
from schemas.process import metrics
from schemas.process.exposition import of_children, serving
from schemas.process.metrics import METRICS, Kind, Value
from sink.metrics import SinkMetrics

BUSY: dict[str, Any] = {
    "producer": Counters(rows=5, pages=2, cursors={0: 7, 1: 9}, cursor_saved_at=1.5, top_audit_id=10),
    "processors": ProcessorMetrics(
        records_in=6,
        logs=3,
        skips=Counter({"contact_not_found": 2}),
        dead_letters=Counter({"undecodable_changes": 1}),
        table_entries={"contacts": 4},
        transformation={
            "actors_fell_back": 3,
            "actors.no_user": 3,
            "directory.requests": 2,
            "contacts.asked": 4,
            "changes.no_row": 5,
        },
    ),
    "sink": SinkMetrics(batches=1, records=3, inserted=2, failed=1),
}
OF_ROLE = {"producer": metrics.PRODUCER, "processors": (*metrics.PROCESSORS, *metrics.LIVE), "sink": metrics.SINK}


def served(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("role", BUSY)
def test_a_process_has_a_value_for_each_metric_of_its_role_and_no_other(role: Any) -> None:
    found = {value.metric for value in BUSY[role].values()}
    assert found == {metric.name for metric in OF_ROLE[role]}


def test_names_follow_the_conventions_and_labels_are_given_as_declared() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"crm_replay_[a-z][a-z_]+[a-z]", metric.full_name)
        assert metric.full_name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help
    for process in BUSY.values():
        for value in process.values():
            assert set(value.labels or {}) == set(METRICS[value.metric].labels), value


@pytest.mark.parametrize("role", BUSY)
def test_prometheus_reads_them_at_the_port_that_is_announced(role: Any, tmp_path: Path) -> None:
    environ = {
        "CRM_REPLAY_METRICS_PORT": "0",
        "CRM_REPLAY_METRICS_DIR": str(tmp_path),
        "CRM_REPLAY_WORKER": "host/a-0",
    }
    about = {"account": "acme", "job_id": "j", "run": "7"}
    with serving(role, BUSY[role].values, about=about, environ=environ) as port:
        assert port
        text = served(port)
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text()) == [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"role": role, "worker": "host/a-0", "account": "acme"}}
        ]
        assert file.name == "host_a-0.7.json"
    for metric in OF_ROLE[role]:
        assert f"# TYPE {metric.full_name} {metric.kind.value}\n" in text
    assert f'crm_replay_process_info{{account="acme",job_id="j",role="{role}",run="7"}} 1.0' in text
    assert f"crm_replay_hot_paths_compiled {float(hot_paths() == COMPILED)}\n" in text
    assert "process_cpu_seconds_total" in text
    if role == "processors":
        assert 'crm_replay_outcomes_total{outcome="skip",reason="contact_not_found"} 2.0' in text
        assert 'crm_replay_directory_total{what="requests"} 2.0' in text
        assert 'crm_replay_actors_fell_back_total{case="no_user"} 3.0' in text
        assert 'crm_replay_rules_total{what="actors_fell_back"} 3.0' in text
        assert 'crm_replay_live_contacts_total{what="asked"} 4.0' in text
        assert 'crm_replay_changes_refused_total{reason="no_row"} 5.0' in text
    assert not list(tmp_path.iterdir())  # nobody scrapes a process that has ended


def test_nothing_is_served_unless_asked_for_and_a_taken_port_is_one_line() -> None:
    with serving("sink", list, environ={}) as port:
        assert port is None
    with (
        serving("sink", list, environ={"CRM_REPLAY_METRICS_PORT": "0"}) as port,
        pytest.raises(BadInputError, match=f"metrics cannot be served on 127.0.0.1:{port}"),
        serving("sink", list, environ={"CRM_REPLAY_METRICS_PORT": str(port)}),
    ):
        pass
    for wrong in ("http", "65536", "-1"):
        with (
            pytest.raises(BadInputError, match="is no port"),
            serving("sink", list, environ={"CRM_REPLAY_METRICS_PORT": wrong}),
        ):
            pass


def test_a_name_that_nobody_declared_is_not_served_in_silence() -> None:
    from schemas.process.exposition import Collected

    with pytest.raises(KeyError, match="rows_red_total"):
        list(Collected(lambda: [Value("rows_red_total", 1)]).collect())


def test_children_take_any_port_where_their_parent_has_one() -> None:
    assert of_children({"CRM_REPLAY_METRICS_PORT": "9102"}) == {"CRM_REPLAY_METRICS_PORT": "0"}
    assert of_children({}) == {}
