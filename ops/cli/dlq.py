"""`crm-replay dlq`: dead letters listed, shown and retried."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pymongo.errors import PyMongoError
from rich.console import Console

from ops.cli import host
from ops.cli.ledger import print_ledger
from ops.cli.options import AsJson, JobMapping
from ops.dead_letters import feed as feed_letters
from ops.dead_letters.read import Place, attempt_of, attempts_of, read_letter, read_letters
from ops.dead_letters.retry import retry_rows
from ops.jobs import migrations
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
    moment,
    payload_of,
    plan,
    printable,
)
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import Topics
from ops.progress import RunView, view_for
from schemas.errors import BadInputError, ReplayError
from schemas.job import LiveFeed
from schemas.process.mongodb import connect
from schemas.records import DeadLetter
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause, ExitCode

SHOWN_CHARACTERS_MAX = 20_000  # of one field of a payload, on a terminal; --json has all of it
_CAUSES = frozenset(DeadLetterCause)

app = typer.Typer(help="Dead letters: what could not be understood or stored, and another try.", no_args_is_help=True)

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
Feed = Annotated[
    str, typer.Option(help="Of a live feed of this name, not of an account's replays.", show_default=False)
]
Cause = Annotated[str, typer.Option(help=f"Only this cause: {', '.join(DeadLetterCause)}.", show_default=False)]


@contextmanager
def _place(account: str, feed: str) -> Iterator[Place]:
    """Give Kafka and MongoDB, both reached; an outage of MongoDB becomes one line."""
    if bool(account) == bool(feed):
        raise BadInputError("--account or --feed", "give one of them")
    if account:
        AccountTopics.of(account)
    connections = host.connections()
    connections.require("kafka_bootstrap_servers", "mongodb_url")
    kafka_admin.client(connections.kafka())
    database = connect(connections, app_name="crm-replay-dlq")
    try:
        migrations.require_current(database)
        found = None
        if feed:
            from ops.feed.feed import feed_of  # with the supervisor of its processes: not for an account's letters

            found = feed_of(database, feed)
        topics = Topics(connections.kafka(), connections.schema_registry_url)
        yield Place(account, found, topics, database, connections)
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()


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
        raise BadInputError(f"Kafka has just deleted offset {chosen.letter.offset}", "list the dead letters again")
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


def _retries_of(place: Place, letter: Letter) -> list[dict[str, Any]]:
    """Return the attempts of a letter's row; of a feed's, those that have sent this letter's record."""
    if place.feed is None:
        return attempts_of(place.database, place.account, letter.row) if letter.row else []
    attempts = feed_letters.attempts_of(place.database, place.feed.feed)
    return [one for one in attempts if any(each["letter"] == letter.offset for each in one["sent"])]


def _choose(listed: Sequence[Listed], offset: int | None, audit_id: int) -> tuple[Listed, list[int]]:
    """Return the letter that is meant, and the offsets of others about the same row."""
    if offset is not None:
        # A repetition is listed under its first offset; the other offset means the same failure.
        chosen = [each for each in listed if each.letter.offset == offset]
        if not chosen:
            raise BadInputError(f"there is no dead letter listed at offset {offset}", "see crm-replay dlq list")
    else:
        chosen = [each for each in listed if each.letter.audit_id == audit_id]
        if not chosen:
            raise BadInputError(f"row {audit_id} has no dead letter", f"crm-replay explain {audit_id} shows more")
    row = chosen[-1].letter.row
    others = [each.letter.offset for each in listed if row is not None and each.letter.row == row]
    return chosen[-1], [other for other in others if other != chosen[-1].letter.offset]


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
        str, typer.Option(help="Only these: 17,18,20-25, or @FILE; default: all that wait.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be retried, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help=f"Also rows that have failed {RETRIES_MAX} retries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    mapping: JobMapping = "",
    processors: Annotated[int, typer.Option(min=1, max=64)] = 1,
    sinks: Annotated[int, typer.Option(min=1, max=64)] = 1,
    wait: Annotated[float, typer.Option(min=0, help="With --feed: seconds until the feed has to have them.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Retry the rows of dead letters: read again from the source, through the topology, in a job of their own.

    With --feed: their original records are produced to the feed's topic again, and the feed decides them again.

    Exit code 0: every row that was retried is migrated or skipped. 1: some have failed again. 2: the call is wrong.
    """
    if not reason.strip():
        raise BadInputError("--reason is empty", "state what has changed since the rows failed")
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
                _retry_feed(place, place.feed, listed, how, view, as_json=as_json)
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
    """The options of a feed's retry."""

    reason: str
    cause: str
    audit_ids: Sequence[int] | None
    dry_run: bool
    force: bool
    yes: bool
    wait_s: float


def _retry_feed(
    place: Place, feed: LiveFeed, listed: Sequence[Listed], how: _FeedRetry, view: RunView, *, as_json: bool
) -> None:
    """Send the records of a feed's dead letters again, and print their outcomes."""
    name = feed.feed
    attempts = feed_letters.attempts_of(place.database, name)
    sending = feed_letters.chosen(
        feed.topic, listed, attempts, cause=how.cause, audit_ids=how.audit_ids, force=how.force
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
        return place.topics.codec.decode_as(DeadLetter, found[1]) if found is not None else None

    sent = feed_letters.send_again(
        feed,
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
        typer.echo(f"{len(sent.places):,} records were sent onto {feed.topic} again")
        if bare := len(sent.places) - sent.whole:
            typer.echo(f"{bare:,} of them without headers: Kafka has deleted the records, and letters keep none")
        if not_sent:
            typer.echo(f"not sent, as their records are not kept: dead letters {', '.join(map(str, not_sent))}")
        for each in sent.failed:
            typer.echo(f"failed again: {each.cause} ({printable(each.detail)}), dead letter {each.offset}")
        if not sent.passed:
            typer.echo("the feed has not taken all of them yet: does crm-replay live run?")
    if failed or not_sent:
        raise typer.Exit(ExitCode.FAILED)


def _replay(place: Place, mapping: str, processors: int, sinks: int, view: RunView) -> Callable[[Sequence[int]], Any]:
    """Return a function that replays rows with the mapping that the account's job was started with."""
    from ops.runner import replay as runner  # the clients of all three packages: for a retry only
    from ops.runner.options import RunOptions

    job = JobStore(place.database).latest(place.account)
    path = mapping or (job.mapping_path if job is not None else "")
    options = RunOptions(path, processors=processors, sinks=sinks, home=host.home())
    return lambda ids: runner.run_selected(place.account, ids, options, place.connections, view)


def _end_dead(place: Place, view: RunView) -> None:
    """End a retry whose runner has died; what it has repaired is counted, also if nothing is left to retry."""
    from ops.runner import repairs
    from ops.runner import replay as runner

    repairs.end_dead(place.account, JobStore(place.database), runner.new_owner(), place.topics, place.database, view)


def _say(planned: Plan, view: RunView) -> None:
    """Print what is left out and why."""
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
        raise BadInputError(
            f"{rows:,} rows of {whose} would be retried, and there is no terminal to confirm it", "give --yes"
        )
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
