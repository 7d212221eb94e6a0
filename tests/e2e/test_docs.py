"""What the pages tell people to type is typed here, word for word, against real servers."""

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from bson import ObjectId
from psycopg.conninfo import make_conninfo

from ops.jobs import coverage
from ops.local import services
from ops.local.generator import GENERATED_MAPPING
from schemas.source.mapping import load
from tests.e2e.conftest import Crm

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "ops").rglob("*.md")))
RUN = {"docs/tutorial.md", "docs/how-to.md", "ops/runbook.md"}
# Their commands are make targets, need hours, or somebody's cluster; what they start is tested elsewhere.
NOT_RUN = {
    "README.md",
    "docs/reliability.md",
    "docs/performance.md",
    "docs/personal-data.md",  # tests/e2e/test_subject.py
    "ops/kubernetes/README.md",
}
TIMEOUT_S = 280


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """Return the page's ```sh blocks, without the indentation of a list that they stand in."""
    found = re.findall(r"(?ms)^( *)```sh\n(.*?)^\1```$", page.read_text())
    return [re.sub(rf"(?m)^{indent}", "", text) for indent, text in found]


class Shell:
    """A bash in a copy of what the pages refer to, with `crm-replay` on its PATH."""

    def __init__(self, crm: Crm, directory: Path, account: str, mapping: str) -> None:
        self.directory = directory
        for name in ("schemas", "ops"):
            (directory / name).symlink_to(ROOT / name)
        program = directory / "bin" / "crm-replay"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from ops.cli.main import main; main()" "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            **crm.environment,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CRM_REPLAY_HOME": str(crm.home),
            "ACCOUNT": account,
            "MAPPING": mapping,
        }

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def works(self, script: str) -> str:
        done = self.run(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def shell(crm: Crm, tmp_path: Path) -> Shell:
    """Give a shell beside a generated CRM of its own accounts; none of it has been replayed."""
    return Shell(crm, tmp_path, "crm-1", GENERATED_MAPPING)


def test_every_page_with_commands_is_run_or_says_why_not() -> None:
    with_commands = {name_of(page) for page in PAGES if blocks(page)}
    assert with_commands <= RUN | NOT_RUN
    assert with_commands >= RUN


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "DECISIONS.md"):
        text = re.sub(r"(?s)```.*?```", "", page.read_text())
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{name_of(page)}: {target}"
            if anchor and linked.suffix == ".md":
                headings = {
                    re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
                    for line in re.findall(r"(?m)^#+ (.*)$", linked.read_text())
                }
                anchors = headings | set(re.findall(r'<a id="([\w-]+)">', linked.read_text()))
                assert anchor in anchors, f"{name_of(page)}: {target}"


@pytest.mark.timeout(900)
def test_the_tutorial_from_its_first_to_its_last_line(shell: Shell) -> None:
    script = "\n".join(blocks(ROOT / "docs/tutorial.md"))
    # The session's servers stand in for those that the page starts and stops; the rest is as it stands.
    assert script.count("services up") == script.count("services down") == 1
    script = script.replace("--audits 20000", "--audits 4000")
    said = shell.works(script)
    assert "completed" in said
    assert re.search(r"equal|no difference", said)


@pytest.mark.timeout(900)
def test_the_how_to_pages_commands(shell: Shell) -> None:
    shell.works("crm-replay generate --audits 3000 --contacts && crm-replay run --account $ACCOUNT --mapping $MAPPING")
    for block in blocks(ROOT / "docs/how-to.md"):
        shell.works(block)


def sections() -> dict[str, list[str]]:
    """Return the runbook's blocks by the anchor of their section, in the order of the page."""
    parts = re.split(r'(?m)^<a id="([\w-]+)"></a>$', (ROOT / "ops/runbook.md").read_text())
    found = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    return {
        anchor: [
            re.sub(rf"(?m)^{indent}", "", block) for indent, block in re.findall(r"(?ms)^( *)```sh\n(.*?)^\1```$", text)
        ]
        for anchor, text in found.items()
    }


def as_in_production(shell: Shell, crm: Crm) -> None:
    """Let the shell read the CRM as a role that may not write, and make everybody in it a contact."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        db.execute(f"GRANT USAGE ON SCHEMA crm TO {role}")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA crm TO {role}")
    shell.environment["CRM_AUDIT_DATABASE_URL"] = make_conninfo(crm.dsn, user=role)
    account, contacts = shell.environment["ACCOUNT"], crm.database["contacts"]
    persons = coverage.persons_in_scope(crm.dsn, load(GENERATED_MAPPING), account).ids
    born = contacts.find_one({"company_sso_id": account, "crm_data.id": {"$exists": True}})
    assert born is not None
    for person in set(persons) - coverage.known_persons(crm.database, account, persons):
        contacts.insert_one({**born, "_id": ObjectId(), "customer_id": f"c{person}", "crm_data": {"id": int(person)}})


@pytest.fixture
def _no_roles_left(postgres_dsn: str) -> Iterator[None]:
    yield
    with psycopg.connect(postgres_dsn, autocommit=True) as db:
        for (role,) in db.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'reader_%'").fetchall():
            db.execute(f"DROP ROLE {role}")  # its rights went with the database


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_no_roles_left")
def test_following_the_runbook_literally_works(shell: Shell, crm: Crm) -> None:
    found = sections()
    shell.works("crm-replay generate --audits 3000 --contacts")
    as_in_production(shell, crm)

    def follow(anchor: str) -> str:
        return "\n".join(shell.works(block) for block in found[anchor])

    assert "completed" in follow("go-live") or crm.database["activity_logs"].count_documents({}) > 0
    follow("")
    job = crm.database["crm_activity_log_migration_jobs"].find_one({"company_sso_id": "crm-1"})
    assert job["status"] == "completed"
    jobs = crm.database["crm_activity_log_migration_jobs"]

    def status() -> str:
        return str((jobs.find_one({"_id": job["_id"]}) or {})["status"])

    for anchor in ("halted", "failed"):  # as somebody finds it in the morning
        jobs.update_one({"_id": job["_id"]}, {"$set": {"status": anchor, "error": "for the test"}})
        follow(anchor)
        assert status() == "completed", anchor
    for anchor in ("halt", "stuck-consumer", "no-runner"):  # in progress, its runner gone without a word
        jobs.update_one(
            {"_id": job["_id"]}, {"$set": {"status": "in_progress"}, "$unset": {"lease": "", "lease_owner": ""}}
        )
        follow(anchor)
        assert status() == "completed", anchor
    crm.database["activity_logs"].delete_one({"company_sso_id": "crm-1", "source_tag": "crm_migration"})
    assert "missing" in follow("history-missing")
    for anchor in ("poison-rows", "server-down", "source-slow", "directory", "rerun"):
        follow(anchor)
        assert status() == "completed", anchor
    follow("rollback")
    assert crm.database["activity_logs"].count_documents({"source_tag": "crm_migration"}) == 0
    assert {anchor for anchor, scripts in found.items() if scripts} == {
        "", "go-live", "halted", "failed", "halt", "stuck-consumer", "no-runner", "history-missing", "poison-rows",
        "server-down", "source-slow", "directory", "rerun", "rollback",
    }  # fmt: skip


def test_bash_and_the_tools_of_the_pages_are_here() -> None:
    assert all(shutil.which(tool) for tool in ("bash", "head", "cp"))
    assert services.Service.KAFKA.variable == "KAFKA_BOOTSTRAP_SERVERS"
