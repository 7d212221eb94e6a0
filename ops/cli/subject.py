"""The command line: `crm-replay subject export` and `subject purge`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from pymongo.errors import PyMongoError
from rich.console import Console

from ops.cli import host
from ops.progress import RunView, view_for
from schemas.errors import BadInputError, ReplayError
from schemas.process.logs import is_utf8

if TYPE_CHECKING:
    from schemas.process.mongodb import Database

app = typer.Typer(
    help="What is kept about one CRM person: exported, or purged with a certificate.", no_args_is_help=True
)

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
PersonId = Annotated[str, typer.Option("--person", help="The CRM's id of the person.", show_default=False)]
Mapping = Annotated[str, typer.Option(help="Source mapping file; default: the account's job's.", show_default=False)]
Output = Annotated[str, typer.Option(help="Write into this file.", show_default=False)]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where to look, and for whom."""

    person: Any
    mapping: Any
    connections: Any
    database: "Database"
    codec: Any


@contextmanager
def _place(account: str, person_id: str, mapping_path: str) -> Iterator[_Place]:
    """Give Kafka and MongoDB, both reached; an outage of MongoDB becomes one line."""
    from ops.jobs import migrations
    from ops.jobs.store import JobStore
    from ops.kafka import admin as kafka_admin
    from ops.subject.model import Person
    from schemas.process.mongodb import connect
    from schemas.process.registry import codec_for
    from schemas.source.mapping import load
    from schemas.topics import AccountTopics

    AccountTopics.of(account)
    connections = host.connections()
    connections.require("kafka_bootstrap_servers", "mongodb_url")
    kafka_admin.client(connections.kafka())
    database = connect(connections, app_name="crm-replay-subject")
    try:
        migrations.require_current(database)
        job = JobStore(database).latest(account)
        mapping = load(mapping_path or (job.mapping_path if job is not None else "") or None)
        person = Person.of(account, person_id, mapping.person)
        yield _Place(person, mapping, connections, database, codec_for(connections.schema_registry_url))
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()


@app.command("export")
def export(account: Account, person: PersonId, mapping: Mapping = "", output: Output = "") -> None:
    """Write all data of the person as JSON lines. They hold personal data, on purpose."""
    view = view_for(Console(stderr=True))
    lines = 0
    try:
        with _place(account, person, mapping) as place, _writer(output) as out:
            for item in _everything(place, view):
                out.write(json_line(item, out) + "\n")
                lines += 1
    finally:
        view.close()
    typer.echo(f"{lines:,} lines", err=True)


def json_line(item: dict[str, Any], out: TextIO) -> str:
    """Return an item as a line of JSON, in letters where the stream has them, else in JSON's own escapes."""
    return json.dumps(item, default=str, ensure_ascii=not is_utf8(out))


def _everything(place: _Place, view: RunView) -> Iterator[dict[str, Any]]:
    from bson import json_util

    from ops.subject import find
    from ops.subject.model import shown_record
    from schemas.topics import AccountTopics

    account, kafka = place.person.company_sso_id, place.connections.kafka()
    _, _, customers = find.contacts_of(place.database, place.person)
    for topic in find.topics_of(account):
        found = find.on_topic(kafka, topic, place.person, place.codec, view)
        if topic == AccountTopics.of(account).contacts:
            customers |= find.customers_on(found, place.codec)
        for record in found.records:
            yield shown_record(topic, record.partition, record.offset, record.key, record.value or b"", place.codec)
    relaxed = json_util.RELAXED_JSON_OPTIONS
    for document in find.documents_of(place.database, place.person, customers):
        yield {"kind": "document", "document": json.loads(json_util.dumps(document, json_options=relaxed))}


@contextmanager
def _writer(output: str) -> Iterator[Any]:
    """Give a stream to a new file, which is there if all was written, or to standard output."""
    if not output:
        yield sys.stdout
        return
    try:
        # Personal data, for the caller's eyes only from the first moment; a link is no way to another file.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream, _removed_on_error(output):
            yield stream
    except FileExistsError as error:
        raise BadInputError(f"{output} exists already", "name a new file") from error
    except OSError as error:
        raise BadInputError(f"{output}: {error.strerror}", "name a file that can be written with --output") from error


@contextmanager
def _removed_on_error(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.unlink(path)  # noqa: PTH108 - of os.open above
        raise


@app.command("purge")
def purge(
    account: Account,
    person: PersonId,
    mapping: Mapping = "",
    truncate_backlog: Annotated[
        bool,
        typer.Option(
            "--truncate-backlog",
            help="Also delete what has been handled on the account's replay and outcomes topics, of every person.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    output: Output = "",
) -> None:
    """Remove what is kept about the person, and print the certificate (JSON) of what was found and removed.

    Exit code 0: done, remaining data only wait for their retention. 1: some could not be removed. 2: bad call.
    """
    from ops.subject.purge import purge_person

    view = view_for(Console(stderr=True))

    def confirm(found: dict[str, Any]) -> None:
        view.note(f"{found['documents']:,} documents, {sum(found['topics'].values()):,} records on topics")
        if yes:
            return
        if not sys.stdin.isatty():
            raise BadInputError(
                "this removes the person's history, and there is no terminal to confirm it", "give --yes"
            )
        if typer.prompt("This cannot be taken back. Type the person's id", err=True).strip() != person.strip():
            raise BadInputError("that is not the person", "nothing was removed")

    try:
        with _place(account, person, mapping) as place, _writer(output) as out:
            certificate = purge_person(
                place.person,
                place.mapping,
                place.connections,
                place.database,
                place.codec,
                view,
                confirm=confirm,
                truncate_backlog=truncate_backlog,
            )
            out.write(json.dumps(certificate.as_dict(), indent=2) + "\n")
    finally:
        view.close()
