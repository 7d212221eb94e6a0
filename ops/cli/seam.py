"""`crm-replay seam`: gaps and overlaps at the handover between replay and live feed, and their repair."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ops.cli import host
from ops.cli.tables import counts_table
from ops.progress import RunView, view_for
from schemas.process.connections import Connections
from schemas.topics import LIVE_FEED
from schemas.vocabulary import ExitCode

if TYPE_CHECKING:
    from ops.checks.seam.check import Report

NAMED_MAX = 100


def seam(
    account: Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)],
    window: Annotated[
        float, typer.Option(min=0, help="Hours on either side of a contact's watermark that are checked; 0: all.")
    ] = 24.0,
    tolerance: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds between a row and its document without external_id.")
    ] = 2.0,
    settle: Annotated[float, typer.Option(min=0, help="Seconds for which a row may be in transit.")] = 60.0,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Replay the gaps that are the replay's, send the others to the live feed."),
    ] = False,
    feed: Annotated[str, typer.Option(help="With --repair: the live feed's name.")] = LIVE_FEED,
    limit: Annotated[int, typer.Option(min=0, help="How many findings are named; all are counted.")] = NAMED_MAX,
    mapping: Annotated[
        str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Check the handover at every contact's watermark: rows that neither side has written, or both.

    Exit code 0: clean. 1: gaps or overlaps, or an outage. 2: the call or its environment is wrong.
    """
    from ops.checks.seam.check import SeamOptions, check_seam  # the clients of all packages: not for --help

    options = SeamOptions(mapping, window * 3600, tolerance, settle, limit)
    connections = host.connections()
    view = view_for(Console(stderr=True))
    try:
        report = check_seam(account, options, connections, view)
        if repair and report.gaps:
            report.repaired = fill(report, mapping, feed, connections, view)
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        print_report(Console(), report)
    if not report.clean:
        raise typer.Exit(ExitCode.FAILED)


def fill(report: "Report", mapping_path: str, feed: str, connections: Connections, view: RunView) -> dict[str, int]:
    """Give every gap to the side that owns it; return how many rows each side was given.

    The replay's are replayed now; the live feed's are on its topic, and written once it reaches them.
    """
    from ops.checks.seam.check import rows_of
    from ops.feed.feed import feed_of
    from ops.runner.options import RunOptions
    from ops.runner.replay import run_selected
    from producer.publisher import Publisher
    from producer.topics import message_bytes_max
    from schemas.process.mongodb import connect
    from schemas.process.registry import codec_for
    from schemas.source.mapping import load
    from schemas.source.person import record_key

    given: dict[str, int] = {}
    account = report.company_sso_id
    if report.gaps_live_ids:
        source_mapping, codec = load(mapping_path or None), codec_for(connections.schema_registry_url)
        database = connect(connections, app_name="crm-replay-seam")
        try:
            topic = feed_of(database, feed).topic
        finally:
            database.client.close()
        publisher = Publisher(connections.kafka(), topic, message_bytes_max(connections.kafka(), topic))
        try:
            for events in rows_of(account, report.gaps_live_ids, source_mapping, connections):
                keyed = ((record_key(event, source_mapping.person).encode(), codec.encode(event)) for event in events)
                publisher.publish(keyed)
                given["live"] = given.get("live", 0) + len(events)
            publisher.flush()
        finally:
            publisher.close()
        view.note(f"{given.get('live', 0):,} rows sent to {topic}; the live feed writes them when it reaches them")
    if report.gaps_replay_ids:
        options = RunOptions(mapping_path=mapping_path, home=host.home())
        given["replay"] = run_selected(account, report.gaps_replay_ids, options, connections, view).ledger.source_rows
    return given


def print_report(console: Console, report: "Report") -> None:
    """Print the counts, what was found, and the verdict."""
    table = counts_table(f"Handover of {report.company_sso_id}")
    rows: list[tuple[str, int]] = [
        ("contacts", report.contacts),
        ("source rows", report.rows),
        ("no log on either side", report.no_log),
        ("unreadable, dead letters", report.unreadable),
        ("outside of the window", report.outside),
        ("too recent", report.too_recent),
        ("checked", report.checked),
        ("written", report.written),
        ("written before, without external_id", report.written_before),
        ("gaps", report.gaps),
        ("of them the replay's", report.gaps_of_replay),
        ("overlaps", report.overlaps),
    ]
    for name, count in rows:
        table.add_row(name, f"{count:,}", style="red" if count and name in ("gaps", "overlaps") else None)
    verdict = "clean" if report.clean else "NOT CLEAN"
    table.add_row("handover", verdict, style="bold green" if report.clean else "bold red")
    console.print(table)
    for finding in report.findings:
        console.print(_line(finding.as_dict()), highlight=False, markup=False, soft_wrap=True)
    if left_out := report.gaps + report.overlaps - len(report.findings):
        console.print(f"{left_out:,} more; name them with --limit", highlight=False)
    for side, count in report.repaired.items():
        console.print(f"{count:,} rows given to the {side}; check again when it has written them", highlight=False)
    if report.seconds:
        console.print(f"{report.rows:,} rows in {report.seconds:.1f} s", highlight=False)


def _line(finding: dict[str, Any]) -> str:
    """Return a finding in one line."""
    documents = f" ({', '.join(finding['documents'])})" if finding["documents"] else ""
    return (
        f"{finding['kind']}: row {finding['audit_id']}, {finding['category']}/{finding['action']} of"
        f" {finding['customer_id']} at {finding['created_at']}, watermark {finding['watermark']}:"
        f" {finding['why']}{documents}"
    )
