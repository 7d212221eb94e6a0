"""`crm-replay enrich`: adds missing ids and names to an account's association logs."""

import json
from typing import Annotated

import typer
from rich.console import Console

from ops.cli import host
from ops.cli.options import Account, AsJson, JobMapping
from ops.cli.tables import counts_table
from ops.enrich.run import NAMED, Enrichment, EnrichOptions, enrich_account
from ops.progress import view_for
from schemas.topics import encode_account
from sink.match_key import DELETED_REFERENCE, Outcome

WHAT = {
    Outcome.PATCHED: "patched",
    Outcome.COMPLETE: "nothing was missing",
    Outcome.ENRICH_AMBIGUOUS: "enrich_ambiguous: several documents match",
    Outcome.CONFLICT: "the document has another value",
    Outcome.REFUSED: "refused by MongoDB",
    Outcome.NO_DOCUMENT: "without a document",
    Outcome.NO_CONTACT: "without a contact",
    Outcome.UNREADABLE: "unreadable",
}


def enrich(
    account: Account,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be patched, write nothing.")] = False,
    window_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds by which a live log's time may differ from its row's; default: as in the mapping.",
            show_default=False,
        ),
    ] = None,
    mapping: JobMapping = "",
    as_json: AsJson = False,
) -> None:
    """Add missing ids and names to the account's association logs, from the source; existing values do not change.

    A run does this for its own rows; this does it again, for all there are, and finishes what a run could not.
    Repeatable at any time, also after a kill. Live logs without external_id are found by customer, action and time.
    """
    encode_account(account)
    view = view_for(Console(stderr=True))
    try:
        done = enrich_account(account, EnrichOptions(mapping, window_s, dry_run), host.connections(), view)
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(done.as_dict()))
    else:
        print_enrichment(Console(), done)


def print_enrichment(console: Console, done: Enrichment) -> None:
    """Print every bin, and the rows that need a person."""
    what = "Enrichment" if not done.dry_run else "Enrichment (dry run: nothing was written)"
    table = counts_table(f"{what} of {done.company_sso_id}")
    table.add_row("association rows", f"{done.associations:,}", style="bold")
    for outcome, text in WHAT.items():
        if count_ := done.outcomes[outcome.value]:
            text = "would be patched" if done.dry_run and outcome is Outcome.PATCHED else text
            table.add_row(text, f"{count_:,}", style="yellow" if outcome in NAMED else None)
    if done.deleted_references:
        table.add_row(f"of them with a {DELETED_REFERENCE}", f"{done.deleted_references:,}")
    console.print(table)
    for name, audit_ids in sorted(done.audit_ids.items()):
        more = ", …" if done.outcomes[name] > len(audit_ids) else ""
        console.print(f"{name}: rows {', '.join(map(str, audit_ids))}{more}", highlight=False, soft_wrap=True)
    if done.seconds and done.associations and not done.resumed:
        console.print(
            f"{done.associations:,} association rows of {done.rows:,} in {done.seconds:.1f} s:"
            f" {done.associations / done.seconds:,.0f}/s",
            highlight=False,
        )
