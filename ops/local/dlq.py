"""`crm-replay dlq`: the account's dead letters listed, shown, and their rows sent through the topology again.

A dead letter stays on its topic whatever becomes of its row later; what has become of it is looked up each time.

Order of effects of a retry: the attempt is noted, then the rows are replayed in a job of their own, then the outcome is
noted. Dying in between leaves an attempt without outcome, which counts as a failed one: a row that takes its runner
down with it must not be retried for ever.
"""

import getpass
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pymongo.errors import PyMongoError
from rich.console import Console

from ops.local.view import RunView, print_ledger, view_for
from schemas.codec import Codec
from schemas.errors import BadInputError, ReplayError, UndecodableRecordError
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause

RETRIES = "crm_replay_retries"  # one document an attempt
RETRIES_MAX = 3  # of a row that has failed each time; more only with --force
AUDIT_IDS_MAX = 100_000  # of one retry; they travel in one document
LOOK_UP_MAX = 1_000  # external ids a query
JOBS_MAX = 1_000
SHOWN_CHARACTERS_MAX = 20_000  # of one field of a payload, on a terminal; --json has all of it
HEX_BYTES_MAX = 256
UNREADABLE = "unreadable"  # what stands on the topic is no dead letter
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CAUSES = frozenset(DeadLetterCause)

app = typer.Typer(help="Dead letters: what could not be understood or stored, and another try.", no_args_is_help=True)


class State(StrEnum):
    """What can be proven about the row of a dead letter."""

    WAITING = "waiting"  # no document, and no later run has skipped it
    RESOLVED = "resolved"  # it has a document, or a later run has left it out on purpose
    NO_ROW = "no_row"  # the letter names no row of this account, so nothing can be looked up or retried


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its payload, which can have megabytes."""

    offset: int  # on the dead-letter topic
    audit_id: int  # 0: unknown
    cause: str
    detail: str
    failed_at_us: int
    run: int
    source_topic: str
    source_partition: int
    source_offset: int
    payload_bytes: int
    repeats: int = 0  # the same failure written again, by a sink that died before it had noted it

    @property
    def row(self) -> int | None:
        """The row of this account it is about; None if it carries no audit id, or another account's."""
        return self.audit_id if self.audit_id > 0 and self.cause != DeadLetterCause.WRONG_ACCOUNT else None

    @property
    def position(self) -> str:
        """The source position as people write it."""
        return f"{self.source_topic}/{self.source_partition}@{self.source_offset}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A dead letter and what has become of it."""

    letter: Letter
    state: State
    why: str  # of the state, where it is resolved
    failures: int  # how often the row has failed, this time included; 1 where there is no row

    def as_dict(self) -> dict[str, Any]:
        """Return what is shown of it, as JSON takes it; holds no personal data."""
        letter = self.letter
        return {
            "offset": letter.offset,
            "audit_id": letter.audit_id or None,
            "cause": letter.cause,
            "detail": letter.detail,
            "failed_at": moment(letter.failed_at_us).isoformat(),
            "run": letter.run,
            "source": {
                "topic": letter.source_topic,
                "partition": letter.source_partition,
                "offset": letter.source_offset,
            },
            "payload_bytes": letter.payload_bytes,
            "failures": self.failures,
            "repeats": letter.repeats,
            "state": self.state.value,
            "why": self.why,
        }


@dataclass(slots=True)
class Plan:
    """What a retry does and what it leaves out."""

    audit_ids: list[int] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)  # audit id, why
    no_audit_id: list[int] = field(default_factory=list)  # offsets of letters that name no row
    other_accounts: list[int] = field(default_factory=list)  # offsets of letters about rows of other accounts
    unknown: int = 0  # ids asked for that have no dead letter


Outcome = tuple[str, str]  # migrated, skipped, failed or gone; reason or cause


# ---- pure -----------------------------------------------------------------------------------------------------------


def moment(at_us: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC; the nearest one that Python can hold."""
    try:
        return EPOCH + timedelta(microseconds=at_us)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if at_us > 0 else datetime.min.replace(tzinfo=UTC)


def letter_of(offset: int, value: bytes, codec: Codec) -> Letter:
    """Return the dead letter in a record of the topic; what is none is one of cause `unreadable`."""
    try:
        found = codec.decode_as(DeadLetter, value)
    except UndecodableRecordError as error:
        return Letter(offset, 0, UNREADABLE, error.what, 0, 0, "", -1, -1, len(value))
    return Letter(
        offset,
        found.audit_id,
        found.cause,
        found.detail,
        found.failed_at,
        found.run,
        found.source_topic,
        found.source_partition,
        found.source_offset,
        len(found.payload),
    )


def once(letters: Iterable[Letter]) -> list[Letter]:
    """Return the letters in their order, each failure once: the first of those with the same run and source position.

    A sink that dies between the delivery of a letter and its own progress writes the letter again.
    """
    first: dict[tuple[int, str, int, int, int], Letter] = {}
    repeats: Counter[tuple[int, str, int, int, int]] = Counter()
    for letter in letters:
        key = (letter.run, letter.source_topic, letter.source_partition, letter.source_offset, letter.audit_id)
        if letter.cause == UNREADABLE:
            key = (0, "", -1, letter.offset, 0)
        if first.setdefault(key, letter) is not letter:
            repeats[key] += 1
    return [_with_repeats(letter, repeats[key]) for key, letter in first.items()]


def _with_repeats(letter: Letter, repeats: int) -> Letter:
    if not repeats:
        return letter
    fields = {name: getattr(letter, name) for name in Letter.__dataclass_fields__}
    return Letter(**{**fields, "repeats": repeats})


def last_runs(letters: Iterable[Letter]) -> dict[int, int]:
    """Return the last run in which each row has failed."""
    runs: dict[int, int] = {}
    for letter in letters:
        if letter.row is not None:
            runs[letter.row] = max(letter.run, runs.get(letter.row, 0))
    return runs


def judge(letters: Sequence[Letter], resolved: Mapping[int, str]) -> list[Listed]:
    """Return the letters with their states; `resolved` says of rows why they need no retry any more."""
    failures = Counter(letter.row for letter in letters if letter.row is not None)
    listed = []
    for letter in letters:
        row = letter.row
        if row is None:
            listed.append(Listed(letter, State.NO_ROW, "", 1))
        elif row in resolved:
            listed.append(Listed(letter, State.RESOLVED, resolved[row], failures[row]))
        else:
            listed.append(Listed(letter, State.WAITING, "", failures[row]))
    return listed


def failed_retries(attempts: Iterable[Mapping[str, Any]]) -> Counter[int]:
    """Return how often in a row each audit id was retried in vain; `attempts` in the order in which they began.

    An attempt that nobody has closed counts as one in vain.
    """
    counted: Counter[int] = Counter()
    for attempt in attempts:
        if attempt.get("outcome") == "started":
            counted.update(attempt["audit_ids"])
        for group in attempt.get("outcomes", ()):
            if group["outcome"] == "failed":
                counted.update(group["audit_ids"])
            else:
                for audit_id in group["audit_ids"]:
                    counted.pop(audit_id, None)
    return counted


def plan(
    listed: Sequence[Listed], retried: Mapping[int, int], *, cause: str, audit_ids: Collection[int] | None, force: bool
) -> Plan:
    """Return which rows a retry replays: those that wait, by the cause of their last letter, each once.

    `audit_ids` None: all of them. A row retried in vain `RETRIES_MAX` times is left out unless forced.
    """
    planned = Plan()
    last: dict[int, Listed] = {}
    for each in listed:
        row = each.letter.row
        if row is not None:
            last[row] = each
        elif audit_ids is None and (not cause or each.letter.cause == cause):
            places = planned.other_accounts if each.letter.audit_id > 0 else planned.no_audit_id
            places.append(each.letter.offset)
    asked = None if audit_ids is None else set(audit_ids)
    if asked is not None:
        planned.unknown = len(asked - last.keys())
    for row in sorted(last):
        each = last[row]
        if (asked is not None and row not in asked) or (cause and each.letter.cause != cause):
            continue
        if each.state is State.RESOLVED:
            if asked is not None:
                planned.left_out.append((row, f"it is resolved: {each.why}"))
        elif retried.get(row, 0) >= RETRIES_MAX and not force:
            planned.left_out.append(
                (row, f"it has been retried {retried[row]} times and has failed each time; --force retries it")
            )
        else:
            planned.audit_ids.append(row)
    return planned


def grouped(outcomes: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    """Return outcomes as they are stored: one entry for each outcome and reason, with its audit ids."""
    groups: dict[Outcome, list[int]] = {}
    for audit_id, outcome in sorted(outcomes.items()):
        groups.setdefault(outcome, []).append(audit_id)
    return [
        {"outcome": outcome, "why": why, "audit_ids": audit_ids} for (outcome, why), audit_ids in sorted(groups.items())
    ]


def parse_audit_ids(text: str) -> list[int]:
    """Return the ids in `17,18,20-25`, or in the file that `@FILE` names. Raises BadInputError naming what is wrong."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{text[1:]} cannot be read ({error})", "name a file with audit ids") from error
    ids: list[int] = []
    for word in text.replace(",", " ").split():
        bounds = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", word, re.ASCII)
        if bounds is None:
            raise BadInputError(f"{word} is no audit id", "give numbers like 17,18,20-25")
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if high < low or len(ids) + high - low >= AUDIT_IDS_MAX:
            raise BadInputError(f"{word} is too much, or backwards", f"at most {AUDIT_IDS_MAX:,} ids")
        ids.extend(range(low, high + 1))
    if not ids:
        raise BadInputError("no audit ids were given", "give numbers like 17,18,20-25")
    return ids


def printable(text: str) -> str:
    """Return a text without the characters that a terminal would obey; line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def hex_dump(data: bytes, bytes_max: int = HEX_BYTES_MAX) -> str:
    """Return the first bytes, sixteen a line: place, hex, and the ASCII among them."""
    lines = []
    for at in range(0, min(len(data), bytes_max), 16):
        part = data[at : min(at + 16, bytes_max)]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:04x}  {part.hex(' '):<47}  {text}")
    if len(data) > bytes_max:
        lines.append(f"{len(data) - bytes_max:,} more bytes")
    return "\n".join(lines)


def payload_of(payload: bytes, codec: Codec) -> dict[str, Any]:
    """Return a dead letter's payload as far as it can be read: `kind`, `bytes`, and `fields` or `hex`."""
    try:
        record = codec.decode(payload)
    except UndecodableRecordError as error:
        if not payload:
            return {"kind": "empty", "bytes": 0, "hex": "", "why": "the record had no value, or it was left out"}
        return {"kind": "undecodable", "bytes": len(payload), "hex": payload.hex(), "why": error.what}
    fields: dict[str, Any] = record._asdict()
    if isinstance(record, AuditEvent):
        fields["created_at"] = moment(record.created_at).isoformat()
    elif isinstance(record, ActivityLog):
        fields["document"] = _document(record.document)
    fields = {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    return {"kind": type(record).__name__, "bytes": len(payload), "fields": fields}


def _document(document: bytes) -> Any:
    """Return a BSON document as JSON takes it, or its bytes if it is none."""
    import bson
    from bson import json_util

    try:
        return json.loads(json_util.dumps(bson.decode(document), json_options=json_util.RELAXED_JSON_OPTIONS))
    except (bson.errors.BSONError, ValueError, OverflowError):
        return document.hex()


# ---- what the servers say -------------------------------------------------------------------------------------------


def read_letters(topics: Any, account: str) -> list[Letter]:
    """Return the account's dead letters, oldest first, each failure once; empty if there is no topic of them.

    `topics` is an `ops.local.trace.Topics`.
    """
    from ops.local.verify.topics import records

    name = AccountTopics.of(account).dead_letters
    return once(letter_of(offset, value, topics.codec) for _, offset, value in records(topics.kafka, name))


def read_letter(topics: Any, account: str, offset: int) -> tuple[Letter, bytes] | None:
    """Return the dead letter at an offset and the bytes of its record; None if there is none."""
    from ops.local.verify.topics import records

    name = AccountTopics.of(account).dead_letters
    found = records(topics.kafka, name, dict.fromkeys(topics.spans(name), offset))
    try:
        for _, at, value in found:
            return (letter_of(at, value, topics.codec), value) if at == offset else None
        return None
    finally:
        found.close()  # type: ignore[attr-defined]


def documents_of(database: Any, account: str, audit_ids: Iterable[int]) -> set[int]:
    """Return those of the rows that have a document, whoever has written it."""
    from ops.control.validation import EXTERNAL_ID_PREFIX, audit_id_of
    from sink.indexes import ACTIVITY_LOGS, UNIQUE_EXTERNAL_ID

    wanted, there = sorted(set(audit_ids)), set()
    for at in range(0, len(wanted), LOOK_UP_MAX):
        names = [f"{EXTERNAL_ID_PREFIX}{audit_id}" for audit_id in wanted[at : at + LOOK_UP_MAX]]
        query = {"company_sso_id": account, "external_id": {"$in": names}}
        found = database[ACTIVITY_LOGS].find(query, {"_id": 0, "external_id": 1}, hint=UNIQUE_EXTERNAL_ID.name)
        there |= {audit_id_of(document["external_id"]) for document in found}
    return {audit_id for audit_id in there if audit_id is not None}


def resolved_rows(letters: Sequence[Letter], account: str, topics: Any, database: Any, view: RunView) -> dict[int, str]:
    """Return why rows need no retry any more, as far as that can be proven, by their audit ids.

    Proof is a document, or a skip in a run after the last failure: in the notes of a retry, or on the outcomes topic
    for as long as Kafka keeps it. Without either, a row waits.
    """
    failed_in = last_runs(letters)
    resolved = dict.fromkeys(documents_of(database, account, failed_in), "it has a document")
    for attempt in attempts_of(database, account):
        for group in attempt.get("outcomes", ()):
            if group["outcome"] == "skipped":
                for audit_id in group["audit_ids"]:
                    if attempt.get("run", 0) > failed_in.get(audit_id, attempt.get("run", 0)):
                        resolved.setdefault(audit_id, f"skipped as {group['why']} by run {attempt['run']}")
    if left := {audit_id: run for audit_id, run in failed_in.items() if audit_id not in resolved}:
        resolved |= _skipped_later(left, account, topics, database, view)
    return resolved


def _skipped_later(
    failed_in: Mapping[int, int], account: str, topics: Any, database: Any, view: RunView
) -> dict[int, str]:
    """Return the rows that a run after their last failure has skipped, as its outcomes say."""
    from ops.control.store import JobStore

    later = [job for job in JobStore(database).jobs(account, JOBS_MAX) if job.run > min(failed_in.values())]
    if not later:
        return {}
    name = AccountTopics.of(account).outcomes
    begin = topics.offsets_at(name, min(job.started_at for job in later))
    skipped = {}
    for found in topics.find(name, failed_in, view, begin):
        record = found.record
        if isinstance(record, SkippedRecord) and record.run > failed_in[record.audit_id]:
            skipped[record.audit_id] = f"skipped as {record.reason} by run {record.run}"
    return skipped


def attempts_of(database: Any, account: str, audit_id: int | None = None) -> list[dict[str, Any]]:
    """Return the account's retries in the order in which they began; of one row or of all."""
    query: dict[str, Any] = {"company_sso_id": account}
    if audit_id is not None:
        query["audit_ids"] = audit_id
    return list(database[RETRIES].find(query).sort([("started_at", 1), ("_id", 1)]))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the account's letters and documents are."""

    account: str
    topics: Any
    database: Any
    connections: Any

    def listed(self, view: RunView) -> list[Listed]:
        """Return all dead letters with their states."""
        letters = read_letters(self.topics, self.account)
        if not letters:
            return []
        return judge(letters, resolved_rows(letters, self.account, self.topics, self.database, view))


@contextmanager
def _place(account: str) -> Iterator[_Place]:
    """Give Kafka and MongoDB, both reached; an outage of MongoDB becomes one line."""
    from ops.control import kafka_admin
    from ops.local import services
    from ops.local.trace import Topics
    from sink.database import connect

    AccountTopics.of(account)
    connections = services.connections()
    connections.require("kafka_bootstrap_servers", "mongodb_url")
    kafka_admin.client(connections.kafka())
    database = connect(connections, app_name="crm-replay-dlq")
    try:
        yield _Place(account, Topics(connections.kafka(), connections.schema_registry_url), database, connections)
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()


def retry_rows(
    account: str,
    audit_ids: Sequence[int],
    reason: str,
    database: Any,
    topics: Any,
    replay: Callable[[Sequence[int]], Any],
    view: RunView,
) -> tuple[Any, dict[int, Outcome]]:
    """Replay the rows, note the attempt, and return the run's result and what each row has ended as.

    `replay` is `ops.local.runner.run_selected` with everything but the ids. What it raises is noted and raised on.
    """
    from ops.control.store import JobAlreadyRunningError, JobStore

    started_at = datetime.now(UTC).replace(microsecond=0)
    retries = database[RETRIES]
    attempt = retries.insert_one(
        {
            "company_sso_id": account,
            "started_at": started_at,
            "finished_at": None,
            "who": f"{_user()}@{socket.gethostname()}",
            "reason": reason,
            "audit_ids": list(audit_ids),
            "job_id": None,
            "run": 0,
            "outcome": "started",
            "outcomes": [],
            "error": None,
        }
    ).inserted_id

    def close(outcome: str, job: Any, outcomes: Mapping[int, Outcome], error: str | None) -> None:
        ended = {"finished_at": datetime.now(UTC), "outcome": outcome, "outcomes": grouped(outcomes), "error": error}
        named = {"job_id": job.job_id, "run": job.run} if job is not None else {}
        retries.update_one({"_id": attempt}, {"$set": {**ended, **named}})

    try:
        result = replay(audit_ids)
    except (BadInputError, JobAlreadyRunningError):
        retries.delete_one({"_id": attempt})  # nothing was tried
        raise
    except ReplayError as error:
        ours = [job for job in JobStore(database).jobs(account, 5) if job.partial and job.created_at >= started_at]
        job = ours[0] if ours else None
        reached = outcomes_of(job, audit_ids, account, topics, database, view) if job is not None else {}
        reached = {audit_id: outcome for audit_id, outcome in reached.items() if outcome[0] != "gone"}
        close(re.sub(r"Error$", "", type(error).__name__).lower(), job, reached, str(error))
        raise
    outcomes = outcomes_of(result.job, audit_ids, account, topics, database, view)
    close("done", result.job, outcomes, None)
    return result, outcomes


def outcomes_of(
    job: Any, audit_ids: Sequence[int], account: str, topics: Any, database: Any, view: RunView
) -> dict[int, Outcome]:
    """Return what each row has ended as in a job's run: migrated, skipped or failed, with the reason; else `gone`."""
    names = AccountTopics.of(account)
    outcomes: dict[int, Outcome] = {}
    begin = topics.offsets_at(names.outcomes, job.started_at)
    logs: set[int] = set()
    for found in topics.find(names.outcomes, audit_ids, view, begin):
        record = found.record
        if isinstance(record, AuditEvent) or record.run != job.run:
            continue
        if isinstance(record, SkippedRecord):
            outcomes[record.audit_id] = ("skipped", record.reason)
        elif isinstance(record, ActivityLog):
            logs.add(record.audit_id)
    for audit_id in documents_of(database, account, logs):
        outcomes[audit_id] = ("migrated", "")
    for found in topics.find(names.dead_letters, audit_ids, view):
        record = found.record
        if isinstance(record, DeadLetter) and record.run == job.run:
            outcomes[record.audit_id] = ("failed", record.cause)
    gone = dict.fromkeys(audit_ids, ("gone", "no row of the account in scope any more"))
    return {**gone, **outcomes}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        return "unknown"


# ---- the command line -----------------------------------------------------------------------------------------------

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Cause = Annotated[str, typer.Option(help=f"Only this cause: {', '.join(DeadLetterCause)}.", show_default=False)]


@app.command("list")
def list_letters(
    account: Account,
    cause: Cause = "",
    run: Annotated[int, typer.Option(min=0, help="Only this run; 0: all.", show_default=False)] = 0,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest last: what failed, why, and whether it still waits for another try."""
    view = view_for(Console(stderr=True))
    try:
        with _place(account) as place:
            listed = place.listed(view)
    finally:
        view.close()
    _require_cause(cause, listed)
    wanted = [
        each for each in listed if (not cause or each.letter.cause == cause) and (not run or each.letter.run == run)
    ]
    shown = wanted[-limit:]
    states = Counter(each.state.value for each in wanted)
    if as_json:
        answer = {
            "company_sso_id": account,
            "total": len(wanted),
            "states": {state.value: states[state.value] for state in State},
            "dead_letters": [each.as_dict() for each in shown],
        }
        typer.echo(json.dumps(answer))
        return
    if not wanted:
        typer.echo("no dead letters" if not listed else f"no such dead letters; there are {len(listed):,} others")
        return
    for line in _lines(shown):
        typer.echo(line)
    counted = ", ".join(f"{states[state.value]:,} {state.value}" for state in State if states[state.value])
    older = f"; the older {len(wanted) - len(shown):,} are shown with --limit" if len(wanted) > len(shown) else ""
    typer.echo(f"{len(wanted):,} dead letters: {counted}{older}")


def _lines(listed: Sequence[Listed]) -> Iterator[str]:
    """Yield a heading and a line for each dead letter, in columns."""
    rows = [("offset", "row", "cause", "state", "failed", "when (UTC)", "run", "source position", "detail")]
    for each in listed:
        letter = each.letter
        detail = " ".join(printable(letter.detail).split())
        rows.append(
            (
                str(letter.offset),
                str(letter.audit_id or "-"),
                printable(letter.cause),
                each.state.value,
                f"{each.failures}x",
                moment(letter.failed_at_us).strftime("%Y-%m-%d %H:%M:%S") if letter.failed_at_us else "-",
                str(letter.run or "-"),
                letter.position if letter.source_topic else "-",
                f"{detail}{f' [{each.why}]' if each.why else ''}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()


def _require_cause(cause: str, listed: Sequence[Listed]) -> None:
    if cause and cause not in _CAUSES and not any(each.letter.cause == cause for each in listed):
        raise BadInputError(f"{cause} is no cause of a dead letter", f"give one of {', '.join(DeadLetterCause)}")


@app.command("show")
def show(
    account: Account,
    offset: Annotated[int | None, typer.Argument(min=0, help="Of the dead letter.", show_default=False)] = None,
    audit_id: Annotated[
        int, typer.Option(min=0, help="Show this row's last dead letter instead.", show_default=False)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its payload. The payload holds personal data of the CRM, and is shown on purpose."""
    if (offset is None) == (audit_id == 0):
        raise BadInputError("name one dead letter", "give its OFFSET, or --audit-id")
    view = view_for(Console(stderr=True))
    try:
        with _place(account) as place:
            listed = place.listed(view)
            if not listed:
                typer.echo("{}" if as_json else "no dead letters")
                return
            chosen, others = _choose(listed, offset, audit_id)
            found = read_letter(place.topics, account, chosen.letter.offset)
            retries = attempts_of(place.database, account, chosen.letter.row) if chosen.letter.row else []
    finally:
        view.close()
    if found is None:
        raise BadInputError(f"Kafka has just let offset {chosen.letter.offset} go", "list the dead letters again")
    answer = chosen.as_dict() | {
        "other_offsets": others,
        "retries": [_attempt(one, chosen.letter.audit_id) for one in retries],
    }
    if chosen.letter.cause == UNREADABLE:
        answer |= {"payload": payload_of(found[1], place.topics.codec)}
    else:
        record = place.topics.codec.decode_as(DeadLetter, found[1])
        answer |= {"key": _text(record.key), "payload": payload_of(record.payload, place.topics.codec)}
    typer.echo(json.dumps(answer) if as_json else "\n".join(_described(answer)))


def _choose(listed: Sequence[Listed], offset: int | None, audit_id: int) -> tuple[Listed, list[int]]:
    """Return the letter that is meant, and the offsets of others about the same row."""
    if offset is not None:
        # A repetition is listed under its first offset; whoever names the other means the same failure.
        chosen = [each for each in listed if each.letter.offset == offset]
        if not chosen:
            raise BadInputError(f"there is no dead letter listed at offset {offset}", "see crm-replay dlq list")
    else:
        chosen = [each for each in listed if each.letter.audit_id == audit_id]
        if not chosen:
            raise BadInputError(f"row {audit_id} has no dead letter", f"crm-replay explain {audit_id} tells more")
    row = chosen[-1].letter.row
    others = [each.letter.offset for each in listed if row is not None and each.letter.row == row]
    return chosen[-1], [other for other in others if other != chosen[-1].letter.offset]


def _attempt(attempt: Mapping[str, Any], audit_id: int) -> dict[str, Any]:
    """Return what is shown of a retry of a row, as JSON takes it."""
    ended = [
        f"{group['outcome']} {group['why']}".strip() for group in attempt["outcomes"] if audit_id in group["audit_ids"]
    ]
    return {
        "at": attempt["started_at"].isoformat(),
        "who": attempt["who"],
        "reason": attempt["reason"],
        "job_id": attempt["job_id"],
        "run": attempt["run"] or None,
        "outcome": ended[0] if ended else attempt["outcome"],
    }


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.hex()


def _described(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show one dead letter."""
    source, payload, written = answer["source"], answer["payload"], answer["repeats"] + 1
    yield f"dead letter at offset {answer['offset']}"
    rows = {
        "row": answer["audit_id"] or "unknown",
        "cause": answer["cause"],
        "detail": answer["detail"] or "-",
        "failed at": answer["failed_at"],
        "run": answer["run"],
        "source": f"{source['topic']}/{source['partition']}@{source['offset']}",
        "state": f"{answer['state']}{': ' if answer['why'] else ''}{answer['why']}",
        "failures": f"{answer['failures']}{f', this one written {written} times' if written > 1 else ''}",
        "key": answer.get("key", "-"),
    }
    for name, value in rows.items():
        yield f"  {name:<10} {printable(str(value))}"
    if answer["other_offsets"]:
        yield f"  {'others':<10} offsets {', '.join(map(str, answer['other_offsets']))} are about the same row"
    for one in answer["retries"]:
        yield printable(f"  {'retried':<10} {one['at']} by {one['who']} ({one['reason']}): {one['outcome']}")
    yield f"payload: {payload['kind']}, {payload['bytes']:,} bytes"
    if "fields" not in payload:
        if payload["why"]:
            yield f"  {payload['why']}"
        yield from ("  " + line for line in hex_dump(bytes.fromhex(payload["hex"])).splitlines())
        return
    for name, value in payload["fields"].items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        more = ""
        if len(text) > SHOWN_CHARACTERS_MAX:
            more = f"... {len(text) - SHOWN_CHARACTERS_MAX:,} more characters: --json has them"
            text = text[:SHOWN_CHARACTERS_MAX]
        lines = [*printable(text).split("\n"), *filter(None, [more])]
        if len(lines) == 1:
            yield f"  {name:<16} {lines[0]}".rstrip()
        else:
            yield f"  {name}:"
            yield from (f"    {line}".rstrip() for line in lines)


@app.command("retry")
def retry(
    account: Account,
    reason: Annotated[str, typer.Option(help="Why now: what has changed. Kept with the attempt.", show_default=False)],
    cause: Cause = "",
    audit_ids: Annotated[
        str, typer.Option(help="Only these: 17,18,20-25, or @FILE; left out: all that wait.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be retried, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help=f"Also rows that have failed {RETRIES_MAX} retries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    mapping: Annotated[
        str, typer.Option(help="Source mapping file; left out: where the job found it.", show_default=False)
    ] = "",
    processors: Annotated[int, typer.Option(min=1, max=64)] = 1,
    sinks: Annotated[int, typer.Option(min=1, max=64)] = 1,
    as_json: AsJson = False,
) -> None:
    """Send the rows of dead letters through the topology again: read anew from the source, in a job of their own.

    Exit code 0: every row that was retried is migrated or skipped. 1: some have failed again. 2: the call is wrong.
    """
    if not reason.strip():
        raise BadInputError("--reason is empty", "say what has changed since the rows failed")
    chosen = parse_audit_ids(audit_ids) if audit_ids else None
    view = view_for(Console(stderr=True))
    try:
        with _place(account) as place:
            listed = place.listed(view)
            _require_cause(cause, listed)
            retried = failed_retries(attempts_of(place.database, account))
            planned = plan(listed, retried, cause=cause, audit_ids=chosen, force=force)
            _say(planned, view)
            if len(planned.audit_ids) > AUDIT_IDS_MAX:
                raise BadInputError(
                    f"{len(planned.audit_ids):,} rows wait, over {AUDIT_IDS_MAX:,}",
                    f"replay the account as a whole: crm-replay rerun --account {account}",
                )
            if not planned.audit_ids or dry_run:
                _show_plan(account, planned, letters=len(listed), dry_run=dry_run, as_json=as_json)
                return
            _confirm(len(planned.audit_ids), account, yes=yes)
            replay = _replay(place, mapping, processors, sinks, view)
            result, outcomes = retry_rows(
                account, planned.audit_ids, reason.strip(), place.database, place.topics, replay, view
            )
    finally:
        view.close()
    _show_result(account, planned, result, outcomes, as_json=as_json)
    if not (result.ledger.balanced and result.ledger.documents_agree):
        raise ReplayError(f"the ledger of {account} is out of balance", result.job.error or "")
    if any(outcome == "failed" for outcome, _ in outcomes.values()):
        raise typer.Exit(1)


def _replay(place: _Place, mapping: str, processors: int, sinks: int, view: RunView) -> Callable[[Sequence[int]], Any]:
    """Return a function that replays rows with the mapping that the account's job was started with."""
    from ops.control.store import JobStore
    from ops.local import runner
    from ops.local.services.layout import Home

    job = JobStore(place.database).latest(place.account)
    path = mapping or (job.mapping_path if job is not None else "")
    options = runner.RunOptions(path, processors=processors, sinks=sinks, home=Home.at(None).path)
    return lambda ids: runner.run_selected(place.account, ids, options, place.connections, view)


def _say(planned: Plan, view: RunView) -> None:
    """Say what is left out and why."""
    for audit_id, why in planned.left_out:
        view.note(f"row {audit_id} is left out: {why}")
    if planned.unknown:
        view.note(f"{planned.unknown:,} of the audit ids have no dead letter")
    for offsets, why in (
        (planned.no_audit_id, "carry no audit id, so their rows cannot be read from the source again"),
        (planned.other_accounts, "are about another account's rows"),
    ):
        if offsets:
            few = ", ".join(map(str, offsets[:10])) + (", ..." if len(offsets) > 10 else "")
            view.note(f"{len(offsets):,} dead letters (offsets {few}) {why}: see crm-replay dlq show")


def _show_plan(account: str, planned: Plan, *, letters: int, dry_run: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**_plan_dict(account, planned), "dry_run": dry_run, "would_retry": planned.audit_ids}))
    elif not letters:
        typer.echo("no dead letters")
    elif not planned.audit_ids:
        typer.echo("nothing to retry")
    else:
        named = ", ".join(map(str, planned.audit_ids[:100])) + (", ..." if len(planned.audit_ids) > 100 else "")
        typer.echo(f"would retry {len(planned.audit_ids):,} rows of {account}: {named}")


def _plan_dict(account: str, planned: Plan) -> dict[str, Any]:
    return {
        "company_sso_id": account,
        "left_out": [{"audit_id": audit_id, "why": why} for audit_id, why in planned.left_out],
        "without_audit_id": planned.no_audit_id,
        "of_other_accounts": planned.other_accounts,
        "unknown": planned.unknown,
    }


def _confirm(rows: int, account: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInputError(f"{rows:,} rows of {account} would be retried, and nobody can be asked", "give --yes")
    typer.confirm(f"Retry {rows:,} rows of {account}?", abort=True, err=True)


def _show_result(account: str, planned: Plan, result: Any, outcomes: Mapping[int, Outcome], *, as_json: bool) -> None:
    counts = Counter(outcome for outcome, _ in outcomes.values())
    failed = [(audit_id, why) for audit_id, (outcome, why) in sorted(outcomes.items()) if outcome == "failed"]
    if as_json:
        answer = {
            **_plan_dict(account, planned),
            "job_id": result.job.job_id,
            "run": result.job.run,
            "retried": len(outcomes),
            **{name: counts[name] for name in ("migrated", "skipped", "failed", "gone")},
            "outcomes": grouped(outcomes),
            "balanced": result.ledger.balanced,
            "seconds": round(result.seconds, 3),
        }
        typer.echo(json.dumps(answer))
        return
    print_ledger(Console(), account, result.ledger, seconds=result.seconds)
    for audit_id, why in failed:
        typer.echo(f"row {audit_id} has failed again: {why}")
    if counts["gone"]:
        gone = [str(audit_id) for audit_id, (outcome, _) in sorted(outcomes.items()) if outcome == "gone"]
        typer.echo(f"no longer rows of the account in scope: {', '.join(gone)}")
