"""What is served is what OpenAPI says: schemathesis asks every operation, with data that fits and that does not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.jobs import migrations
from schemas.process.connections import Connections
from tests.fixtures.services import mongo_scratch, postgres_database
from tests.integration.control.http_server import PASSWORD, USER, Served, serving, token
from tests.integration.producer.crm import make_audits

pytestmark = [pytest.mark.services, pytest.mark.slow]
ENDLESS = "/console/api/events"  # a stream; tested by itself
EXAMPLES = 2  # of each operation, besides those that cover the schema's corners


@pytest.fixture(scope="module")
def served(mongodb_url: str, postgres_dsn: str, kafka_bootstrap: str) -> Iterator[Served]:
    with mongo_scratch(mongodb_url) as database, postgres_database(postgres_dsn) as dsn:
        migrations.up(database)
        make_audits(dsn)
        connections = Connections(
            mongodb_url=mongodb_url,
            mongodb_database=database.name,
            crm_audit_database_url=dsn,
            kafka_bootstrap_servers=kafka_bootstrap,
        )
        # Wrong logins are part of the examples, and not what is looked for.
        with serving(connections, auth_failures_max=10**6, auth_failures_address_max=10**6) as running:
            yield running


def test_schemathesis_finds_nothing(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        # A schema cannot say which characters beyond ASCII an account's id may have; test_http_migration.py does.
        f'[generation]\ncodec = "ascii"\nmax-examples = {EXAMPLES}\n'
        f'[auth.openapi.basic]\nusername = "{USER}"\npassword = "{PASSWORD}"\n'
        f'[auth.openapi.session]\nbearer = "{token()}"\n'
    )
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"),
        *(f"{served.url}/openapi.json", "--exclude-path", ENDLESS, "--seed", "1", "--workers", "1", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "Failures:" not in done.stdout
    assert "Errors:" not in done.stdout
    tested = len(served.client.get("/openapi.json").json()["paths"])
    assert f"Tested: {tested - 1}" in done.stdout, done.stdout[-5_000:]


def test_every_operation_says_how_it_answers_and_who_may_ask(served: Served) -> None:
    described = served.client.get("/openapi.json").json()
    assert set(described["components"]["securitySchemes"]) == {"basic", "session"}
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            guard = {"/pr": "basic", "/co": "basic", "/v1": "session", "/ia": "session"}.get(path[:3])
            assert operation.get("security") == ([{guard: []}] if guard else None), path
            if guard:
                assert {"400", "401", "429", "503"} <= operation["responses"].keys(), path
                envelope = operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"]
                assert envelope.endswith("/ErrorEnvelope")
            if "requestBody" in operation:
                assert {"413", "415"} <= operation["responses"].keys(), path
