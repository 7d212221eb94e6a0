"""`crm-replay explain`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from ops.checks.explain.collect import explain_row
from ops.checks.explain.lineage import text_lines, verdict
from ops.cli import host
from ops.cli.options import Account, AsJson, JobMapping
from ops.progress import view_for
from schemas.errors import BadInputError
from schemas.identity import AUDIT_ID_MAX
from schemas.topics import LIVE_FEED
from schemas.vocabulary import SkipReason


def explain(
    audit_id: Annotated[str, typer.Argument(help="audits.id", show_default=False)],
    account: Account,
    mapping: JobMapping = "",
    feed: Annotated[
        str, typer.Option(help="Show also the row's outcomes in the live feed of this name.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show the lineage of a source row: key, offsets, the rule that decided, document, dead letters.

    Exit code 0: the lineage is shown; it names servers that did not respond. 2: the call is wrong.
    """
    if not (audit_id.isascii() and audit_id.isdigit() and len(audit_id) <= 19 and 0 < int(audit_id) <= AUDIT_ID_MAX):
        raise BadInputError(f"{audit_id} is no audit id", f"give one number, 1 to {AUDIT_ID_MAX}")
    view = view_for(Console(stderr=True))
    try:
        lineage = explain_row(account, int(audit_id), host.connections(), mapping, view, feed)
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(lineage.as_dict()))
        return
    typer.echo(f"row {lineage.audit_id} of {account}: {verdict(lineage)}")
    for line in text_lines(lineage):
        typer.echo(line)
    if not feed and SkipReason.POST_SYNC_LIVE_FEED.value in verdict(lineage):
        typer.echo(
            f"its outcome in the live feed: crm-replay explain {audit_id} --account {account} --feed {LIVE_FEED}"
        )
