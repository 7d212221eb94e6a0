"""Wherever an address is shown or complained about, its password is not."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import schemas.process.mongodb
from ops.cli import main as cli
from ops.cli import services as services_cli
from ops.cli.subject import _writer
from ops.feed.connector import Connect, connector_config
from processors.feed import mongo
from producer.audits import connect
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.registry import SchemaLookup, codec_for
from schemas.source.mapping import load

SECRET = "hunter2"
CLOSED = f"http://user:{SECRET}@127.0.0.1:1"
UNENCODED = f"http://user:{SECRET}/x@127.0.0.1:8081"  # a slash in the password: the rest is no port
DSN = f"postgresql://user:{SECRET}@127.0.0.1:1/crm"
DSN_UNENCODED = f"postgresql://user:{SECRET}/x@127.0.0.1/crm"
MONGODB_UNENCODED = f"mongodb://user:{SECRET}/x@127.0.0.1/cdp"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: codec_for(CLOSED),
        lambda: codec_for(UNENCODED),
        lambda: SchemaLookup(CLOSED)(1),
        lambda: SchemaLookup(UNENCODED)(1),
        lambda: Connect(CLOSED).state("x"),
        lambda: Connect(UNENCODED).state("x"),
        lambda: connector_config(load(None), DSN_UNENCODED + "?nonsense=1", account="a"),
        lambda: connect(DSN),
        lambda: connect(f"host=127.0.0.1 port=1 password='{SECRET} x' sslpassword={SECRET}"),
        lambda: connect(DSN_UNENCODED),
        lambda: connect(f"postgresql://user:%zz{SECRET}@h/db"),
        lambda: schemas.process.mongodb.open_database(Connections(mongodb_url=MONGODB_UNENCODED)),
        lambda: mongo.database(Connections(mongodb_url=MONGODB_UNENCODED)),
        lambda: mongo.database(Connections(mongodb_url=f"mongodb://user:{SECRET}@h:{SECRET}/")),
    ],
)
def test_no_error_has_the_password_of_an_address(ask: Callable[[], Any]) -> None:
    with pytest.raises(ReplayError) as raised:
        ask()
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_registry_is_named_without_its_user() -> None:
    with pytest.raises(ServiceUnreachableError, match=r"schema registry at http://127.0.0.1:1 does not answer"):
        codec_for(CLOSED)


def test_settings_do_not_show_their_secrets() -> None:
    names = ("crm_audit_database_url", "mongodb_url", "schema_registry_url", "user_directory_url")
    given: dict[str, Any] = dict.fromkeys(names, CLOSED)
    settings = Connections(**given, kafka_sasl_password=SECRET)
    assert SECRET not in repr(settings) + str(settings)


def test_the_servers_status_shows_no_password_and_env_is_for_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_AUDIT_DATABASE_URL", DSN)
    for variable in ("KAFKA_BOOTSTRAP_SERVERS", "MONGODB_URL"):
        monkeypatch.setenv(variable, "127.0.0.1:1")
    call, home = CliRunner().invoke, ["--home", str(tmp_path / "home")]
    for words in (["status", *home], ["status", "--json", *home], ["up", *home], ["up", "--json", *home]):
        said = call(services_cli.app, words)
        assert "postgresql://127.0.0.1:1/crm" in said.output
        assert SECRET not in said.output
    assert f"export CRM_AUDIT_DATABASE_URL={DSN}" in call(services_cli.app, ["env", *home]).output


def test_the_trace_of_a_defect_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show_defect(httpx.InvalidURL, httpx.InvalidURL(f"cannot use {CLOSED}"), None)
    said = capsys.readouterr().err
    assert "InvalidURL" in said
    assert SECRET not in said


def test_an_export_is_the_callers_alone_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "export.jsonl"
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # what comes after the opening is too late
    umask = os.umask(0)
    try:
        with _writer(str(output)) as out:
            assert stat.S_IMODE(output.stat().st_mode) == 0o600
            out.write("Budi\n")
    finally:
        os.umask(umask)
    assert output.read_text() == "Budi\n"
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "link").symlink_to(elsewhere)
    for taken in (output, tmp_path / "link"):
        with pytest.raises(BadInputError, match="exists already"), _writer(str(taken)):
            pass
    assert not elsewhere.exists()
