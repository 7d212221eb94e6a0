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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pymongo.errors import PyMongoError
from rich.console import Console

from ops.jobs.audit_ids import AUDIT_IDS_MAX, parse_audit_ids
from ops.jobs.letters import (
    RETRIES_MAX,
    UNREADABLE,
    Letter,
    Listed,
    Outcome,
    Plan,
    State,
    failed_retries,
    grouped,
    hex_dump,
    judge,
    last_runs,
    letter_of,
    moment,
    once,
    payload_of,
    plan,
    printable,
)
from ops.progress import RunView, print_ledger, view_for
from schemas.collections import RETRIES
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError, UnknownSchemaError, UnreadableTopicError
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause, ExitCode

LOOK_UP_MAX = 1_000  # external ids a query
JOBS_MAX = 1_000
SHOWN_CHARACTERS_MAX = 20_000  # of one field of a payload, on a terminal; --json has all of it
_CAUSES = frozenset(DeadLetterCause)

app = typer.Typer(help="Dead letters: what could not be understood or stored, and another try.", no_args_is_help=True)


def read_letters(topics: Any, names: AccountTopics) -> list[Letter]:
    """Return the dead letters of an account or a feed, oldest first, each failure once; empty without a topic of them.

    `topics` is an `ops.kafka.rows.Topics`.
    """
    from ops.kafka.topics import records

    name = names.dead_letters
    letters = []
    for partition, offset, value in records(topics.kafka, name):
        try:
            letters.append(letter_of(offset, value, topics.codec, unknown_schema_raises=True))
        except UnknownSchemaError as error:
            raise UnreadableTopicError.at(name, partition, offset, error) from error
    return once(letters)


def read_letter(topics: Any, names: AccountTopics, offset: int) -> tuple[Letter, bytes] | None:
    """Return the dead letter at an offset and the bytes of its record; None if there is none."""
    from ops.kafka.topics import records

    name = names.dead_letters
    found = records(topics.kafka, name, dict.fromkeys(topics.spans(name), offset))
    try:
        for _, at, value in found:
            return (letter_of(at, value, topics.codec), value) if at == offset else None
        return None
    finally:
        found.close()  # type: ignore[attr-defined]


def documents_of(database: Any, account: str, audit_ids: Iterable[int]) -> set[int]:
    """Return those of the rows that have a document, whoever has written it."""
    from schemas.collections import ACTIVITY_LOGS
    from schemas.identity import audit_id_of, external_id_of
    from sink.indexes import UNIQUE_EXTERNAL_ID

    wanted, there = sorted(set(audit_ids)), set()
    for at in range(0, len(wanted), LOOK_UP_MAX):
        names = [external_id_of(audit_id) for audit_id in wanted[at : at + LOOK_UP_MAX]]
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
    from ops.jobs.store import JobStore

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
    """Where the letters and documents of an account or of a feed are."""

    account: str  # "": it is a feed
    feed: Any  # a LiveFeed, else None
    topics: Any
    database: Any
    connections: Any

    @property
    def names(self) -> AccountTopics:
        """The names of its topics."""
        found: AccountTopics = self.feed.topics if self.feed is not None else AccountTopics.of(self.account)
        return found

    @property
    def whose(self) -> dict[str, str]:
        """What an answer in JSON says of it."""
        return {"feed": self.feed.feed} if self.feed is not None else {"company_sso_id": self.account}

    def listed(self, view: RunView) -> list[Listed]:
        """Return all dead letters with their states."""
        letters = read_letters(self.topics, self.names)
        if not letters:
            return []
        if self.feed is not None:
            from ops.dead_letters.feed import judged

            return judged(letters, self.feed, self.topics, self.database, view)
        return judge(letters, resolved_rows(letters, self.account, self.topics, self.database, view))


@contextmanager
def _place(account: str, feed: str) -> Iterator[_Place]:
    """Give Kafka and MongoDB, both reached; an outage of MongoDB becomes one line."""
    if bool(account) == bool(feed):
        raise BadInputError("--account or --feed", "give one of them")
    from ops.jobs import migrations
    from ops.kafka import admin as kafka_admin
    from ops.kafka.rows import Topics
    from ops.local import services
    from sink.database import connect

    if account:
        AccountTopics.of(account)
    connections = services.connections()
    connections.require("kafka_bootstrap_servers", "mongodb_url")
    kafka_admin.client(connections.kafka())
    database = connect(connections, app_name="crm-replay-dlq")
    try:
        migrations.require_current(database)
        found = None
        if feed:
            from ops.feed.feed import feed_of

            found = feed_of(database, feed)
        topics = Topics(connections.kafka(), connections.schema_registry_url)
        yield _Place(account, found, topics, database, connections)
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

    `replay` is `ops.runner.replay.run_selected` with everything but the ids. What it raises is noted and raised on.
    """
    from ops.jobs.store import JobAlreadyRunningError, JobStore

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
    except (BadInputError, ServiceUnreachableError, JobAlreadyRunningError):
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
Feed = Annotated[
    str, typer.Option(help="Of a live feed of this name, not of an account's replays.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Cause = Annotated[str, typer.Option(help=f"Only this cause: {', '.join(DeadLetterCause)}.", show_default=False)]


@app.command("list")
def list_letters(
    account: Account = "",
    feed: Feed = "",
    cause: Cause = "",
    run: Annotated[int, typer.Option(min=0, help="Only this run; 0: all.", show_default=False)] = 0,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest last: what failed, why, and whether it still waits for another try."""
    view = view_for(Console(stderr=True))
    try:
        with _place(account, feed) as place:
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
            **place.whose,
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
    offset: Annotated[int | None, typer.Argument(min=0, help="Of the dead letter.", show_default=False)] = None,
    account: Account = "",
    feed: Feed = "",
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
        with _place(account, feed) as place:
            listed = place.listed(view)
            if not listed:
                typer.echo("{}" if as_json else "no dead letters")
                return
            chosen, others = _choose(listed, offset, audit_id)
            found = read_letter(place.topics, place.names, chosen.letter.offset)
            retries = _retries_of(place, chosen.letter)
    finally:
        view.close()
    if found is None:
        raise BadInputError(f"Kafka has just let offset {chosen.letter.offset} go", "list the dead letters again")
    answer = chosen.as_dict() | {
        "other_offsets": others,
        "retries": [attempt_of(one, chosen.letter.audit_id) for one in retries],
    }
    if chosen.letter.cause == UNREADABLE:
        answer |= {"payload": payload_of(found[1], place.topics.codec)}
    else:
        record = place.topics.codec.decode_as(DeadLetter, found[1])
        answer |= {"key": _text(record.key), "payload": payload_of(record.payload, place.topics.codec)}
    typer.echo(json.dumps(answer) if as_json else "\n".join(_described(answer)))


def _retries_of(place: _Place, letter: Letter) -> list[dict[str, Any]]:
    """Return the attempts of a letter's row; of a feed's, those that have sent this letter's record."""
    if place.feed is None:
        return attempts_of(place.database, place.account, letter.row) if letter.row else []
    from ops.dead_letters.feed import attempts_of as attempts_of_feed

    attempts = attempts_of_feed(place.database, place.feed.feed)
    return [one for one in attempts if any(each["letter"] == letter.offset for each in one["sent"])]


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


def attempt_of(attempt: Mapping[str, Any], audit_id: int) -> dict[str, Any]:
    """Return what is shown of a retry of a row, as JSON takes it."""
    ended = [
        f"{group['outcome']} {group['why']}".strip() for group in attempt["outcomes"] if audit_id in group["audit_ids"]
    ]
    return {
        "at": attempt["started_at"].isoformat(),
        "who": attempt["who"],
        "reason": attempt["reason"],
        "job_id": attempt.get("job_id"),  # a feed's has no job
        "run": attempt.get("run") or None,
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
    reason: Annotated[str, typer.Option(help="Why now: what has changed. Kept with the attempt.", show_default=False)],
    account: Account = "",
    feed: Feed = "",
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
    wait: Annotated[float, typer.Option(min=0, help="With --feed: seconds until the feed has to have them.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Send the rows of dead letters through the topology again: read anew from the source, in a job of their own.

    With --feed: their records are sent onto the feed's topic again, as they came; whoever runs the feed decides anew.

    Exit code 0: every row that was retried is migrated or skipped. 1: some have failed again. 2: the call is wrong.
    """
    if not reason.strip():
        raise BadInputError("--reason is empty", "say what has changed since the rows failed")
    chosen = parse_audit_ids(audit_ids) if audit_ids else None
    view = view_for(Console(stderr=True))
    try:
        with _place(account, feed) as place:
            if not dry_run and not feed:
                _end_dead(place, view)
            listed = place.listed(view)
            _require_cause(cause, listed)
            if place.feed is not None:
                how = _FeedRetry(reason.strip(), cause, chosen, dry_run=dry_run, force=force, yes=yes, wait_s=wait)
                _retry_feed(place, listed, how, view, as_json=as_json)
                return
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
        raise typer.Exit(ExitCode.FAILED)


@dataclass(frozen=True, slots=True)
class _FeedRetry:
    """What a retry of a feed was asked for."""

    reason: str
    cause: str
    audit_ids: Sequence[int] | None
    dry_run: bool
    force: bool
    yes: bool
    wait_s: float


def _retry_feed(place: _Place, listed: Sequence[Listed], how: _FeedRetry, view: RunView, *, as_json: bool) -> None:
    """Send the records of a feed's dead letters again, and say what has become of them."""
    from ops.dead_letters import feed as feed_letters

    name = place.feed.feed
    attempts = feed_letters.attempts_of(place.database, name)
    sending = feed_letters.chosen(
        place.feed.topic, listed, attempts, cause=how.cause, audit_ids=how.audit_ids, force=how.force
    )
    letters = [each.letter for each in sending.letters]
    for offset, why in sending.left_out:
        view.note(f"dead letter {offset} is left out: {why}")
    answer: dict[str, Any] = {
        "feed": name,
        "left_out": [{"offset": offset, "why": why} for offset, why in sending.left_out],
    }
    offsets = [letter.offset for letter in letters]
    if how.dry_run or not letters:
        if as_json:
            typer.echo(json.dumps({**answer, "dry_run": how.dry_run, "would_retry": offsets}))
        else:
            named = ", ".join(map(str, offsets[:100])) + (", ..." if len(offsets) > 100 else "")
            typer.echo(
                f"would send {len(offsets):,} records again, of dead letters {named}" if letters else "nothing to retry"
            )
        return
    _confirm(len(letters), f"feed {name}", yes=how.yes)

    def kept(offset: int) -> DeadLetter | None:
        found = read_letter(place.topics, place.names, offset)
        letter: DeadLetter | None = place.topics.codec.decode_as(DeadLetter, found[1]) if found is not None else None
        return letter

    sent = feed_letters.send_again(
        place.feed,
        letters,
        how.reason,
        place.topics,
        place.database,
        lambda: read_letters(place.topics, place.names),
        kept,
        how.wait_s,
    )
    not_sent = [offset for offset in offsets if offset not in sent.places]
    failed = [each.offset for each in sent.failed]
    if as_json:
        answer |= {
            "sent": [
                {"dead_letter": letter, "partition": at.partition, "offset": at.offset}
                for letter, at in sorted(sent.places.items())
            ],
            "not_sent": not_sent,
            "with_headers": sent.whole,
            "passed": sent.passed,
            "failed_again": failed,
        }
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"{len(sent.places):,} records were sent onto {place.feed.topic} again")
        if bare := len(sent.places) - sent.whole:
            typer.echo(f"{bare:,} of them without headers: Kafka has let the records go, and letters keep none")
        if not_sent:
            typer.echo(f"not sent, for nothing keeps their records: dead letters {', '.join(map(str, not_sent))}")
        for each in sent.failed:
            typer.echo(f"failed again: {each.cause} ({printable(each.detail)}), dead letter {each.offset}")
        if not sent.passed:
            typer.echo("the feed has not taken all of them yet: does crm-replay live run?")
    if failed or not_sent:
        raise typer.Exit(ExitCode.FAILED)


def _replay(place: _Place, mapping: str, processors: int, sinks: int, view: RunView) -> Callable[[Sequence[int]], Any]:
    """Return a function that replays rows with the mapping that the account's job was started with."""
    from ops.jobs.store import JobStore
    from ops.local.services.layout import Home
    from ops.runner import replay as runner

    job = JobStore(place.database).latest(place.account)
    path = mapping or (job.mapping_path if job is not None else "")
    options = runner.RunOptions(path, processors=processors, sinks=sinks, home=Home.at(None).path)
    return lambda ids: runner.run_selected(place.account, ids, options, place.connections, view)


def _end_dead(place: _Place, view: RunView) -> None:
    """End a retry whose runner has died; what it has repaired is counted, also if nothing is left to retry."""
    from ops.jobs.store import JobStore
    from ops.runner import repairs
    from ops.runner import replay as runner

    repairs.end_dead(place.account, JobStore(place.database), runner.new_owner(), place.topics, place.database, view)


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


def _confirm(rows: int, whose: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInputError(f"{rows:,} rows of {whose} would be retried, and nobody can be asked", "give --yes")
    typer.confirm(f"Retry {rows:,} rows of {whose}?", abort=True, err=True)


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
