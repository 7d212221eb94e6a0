"""The command line of the check."""

import json
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from ops.checks.verify.model import NAMED_MAX, Kind, Report
from ops.cli import host
from ops.cli.options import JobMapping
from ops.cli.tables import counts_table
from ops.progress import view_for
from schemas.errors import BadInputError
from schemas.vocabulary import ExitCode

WHAT = {
    Kind.MISSING: "missing: a row without its document",
    Kind.EXTRA: "extra: a document without its row",
    Kind.DIFFERENT: "different: not what the row becomes",
    Kind.DEAD_LETTER_LOST: "dead letter lost",
}


def verify(
    account: Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Delete documents that are wrong, replay the named rows, verify again, complete the job."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: show what it would do, and do nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: skip the confirmation.")] = False,
    delete_max_pct: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="With --repair: refuse to delete more of the account's documents (10 are allowed always).",
        ),
    ] = 1.0,
    limit: Annotated[int, typer.Option(min=0, help="How many rows of a kind are named; all are counted.")] = NAMED_MAX,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes; 0: one a core.")] = 0,
    mapping: JobMapping = "",
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Transform all rows again, those unchanged since they were proved as well."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Prove the account's copy: transform its source rows again and compare them with its documents, one by one.

    Where rows, documents and rules are byte for byte as they were when a verify has proved them, only that is shown.

    A job that had failed or was halted, and whose copy is whole after --repair, is completed with the proof's counts.

    Exit code 0: equal. 1: not equal, or an outage. 2: the call or its environment is wrong, or a repair was refused.
    """
    from ops.checks.verify.check import VerifyOptions, verify_account  # the clients of all packages: not for --help
    from ops.repair.run import close, end_dead, is_whole, plan_of
    from ops.repair.run import repair as repair_copy

    if (dry_run or yes) and not repair:
        raise BadInputError("--dry-run and --yes belong to --repair", "give --repair, too")
    options = VerifyOptions(workers, limit, mapping, from_scratch=from_scratch)
    connections = host.connections()
    view = view_for(Console(stderr=True))
    try:
        if repair and not dry_run:
            end_dead(account, connections, view)
        report = verify_account(account, options, connections, view)
        plan = plan_of(report, delete_max_pct) if repair and report.tally.found else None
        if plan is not None and dry_run:
            report.planned = plan.as_dict()
            report.notes += [f"a repair would {plan.in_words(account)}", *(plan.refused or ())[:1]]
        elif plan is not None:
            from ops.runner.options import RunOptions

            if not as_json:
                print_report(Console(), report)
            if plan.refused is not None:
                raise BadInputError(*plan.refused)
            view.close()
            _confirm(plan.in_words(account), yes=yes)
            view = view_for(Console(stderr=True))
            run_options = RunOptions(mapping_path=mapping or report.mapping_path, home=host.home())
            deleted, replayed = repair_copy(report, plan, run_options, connections, view)
            report = verify_account(account, options, connections, view)
            report.deleted, report.replayed = deleted, replayed
        if repair and not dry_run and is_whole(report) and close(report, connections) is not None:
            report.completed, report.counts = True, []
            report.notes.append("the job is completed, with the counts of this proof")
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(report.as_dict(time.time_ns() // 1000)))
    else:
        print_report(Console(), report)
    if not report.equal:
        raise typer.Exit(ExitCode.FAILED)


def _confirm(what: str, *, yes: bool) -> None:
    """Return once it may be done. Raises BadInputError where there is no terminal to confirm at."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInputError(f"this would {what}, and there is no terminal to confirm it", "give --yes")
    typer.confirm(f"This will {what}. Continue?", abort=True, err=True)


def print_report(console: Console, report: Report) -> None:
    """Print the counts, what was found, and the verdict."""
    tally, now_us = report.tally, time.time_ns() // 1000
    table = counts_table(f"Copy of {report.company_sso_id}")
    table.add_row("source rows", f"{tally.rows:,}", style="bold")
    if tally.unchanged:
        table.add_row("of them unchanged since they were proved", f"{tally.unchanged:,}")
    table.add_row("documents expected", f"{tally.logs:,}")
    table.add_row("documents of the replay", f"{report.documents:,}")
    table.add_row("equal", f"{tally.matched:,}")
    if tally.enriched:
        table.add_row("of them enriched since", f"{tally.enriched:,}")
    for reason, count in sorted(tally.skipped.items()):
        table.add_row(f"skipped: {reason}", f"{count:,}")
    for cause, count in sorted(tally.failed.items()):
        table.add_row(f"failed: {cause}", f"{count:,}")
    for kind, what in WHAT.items():
        if count := tally.found[kind.value]:
            table.add_row(what, f"{count:,}", style="red")
    verdict = "equal" if report.equal else "NOT EQUAL"
    table.add_row("copy", verdict, style="bold green" if report.equal else "bold red")
    console.print(table)
    for finding in tally.findings:
        console.print(line_of(finding.as_dict(now_us)), highlight=False, markup=False, soft_wrap=True)
    if left_out := sum(tally.found.values()) - len(tally.findings):
        console.print(f"{left_out:,} more; name them with --limit", highlight=False)
    for failed in tally.failures:
        console.print(f"failed: row {failed.audit_id} ({failed.cause})", highlight=False, markup=False)
    for count_ in report.counts:
        console.print(f"counted wrong: {count_.name}: the job has {count_.job:,}, its rows {count_.truth:,}")
    for unhandled in report.offsets:
        committed = "nothing" if unhandled.committed < 0 else f"{unhandled.committed:,}"
        console.print(
            f"not all handled: group {unhandled.group}, partition {unhandled.partition}:"
            f" {committed} committed of {unhandled.end:,}",
            highlight=False,
            soft_wrap=True,
        )
    for note in report.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if report.deleted is not None:
        console.print(f"repaired: {report.deleted:,} documents deleted, {report.replayed:,} rows replayed")
    if report.seconds:
        console.print(
            f"{tally.rows:,} rows in {report.seconds:.1f} s: {tally.rows / report.seconds:,.0f} rows/s", highlight=False
        )


def line_of(finding: dict[str, object]) -> str:
    """Return a finding in one line."""
    name = f"row {finding['audit_id']}" if finding["audit_id"] is not None else "no row of the account"
    external_id = finding.get("external_id", "without external_id")
    document = f", document {finding['document_id']} ({external_id})" if "document_id" in finding else ""
    age_s = finding["age_s"]
    age = f", {age_text(age_s)} old" if isinstance(age_s, int) else ""
    return f"{finding['kind']}: {name}{document}{age}: {finding['why']}"


def age_text(seconds: int) -> str:
    """Return an age for people: `3 d`, `5 h`, `12 min`, `40 s`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"
