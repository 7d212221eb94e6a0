"""Where `crm-replay cdc` finds Kafka Connect."""

import pytest

from ops.cli import cdc
from schemas.errors import BadInputError


def test_where_connect_is_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CRM_REPLAY_HOME", str(tmp_path))
    monkeypatch.delenv("KAFKA_CONNECT_URL", raising=False)
    with pytest.raises(BadInputError, match="no Kafka Connect is running"):
        cdc.connect_url()
    monkeypatch.setenv("KAFKA_CONNECT_URL", "http://connect.example:8083")
    assert cdc.connect_url() == "http://connect.example:8083"
