"""The command line of the rollout's report."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ops.checks.rollout.model import rollout
from ops.checks.rollout.render import as_dict, html, markdown
from ops.cli import host
from schemas.errors import BadInputError, ReplayError


class Format(StrEnum):
    """How the report is written."""

    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"


def report(
    plan: Annotated[
        str, typer.Option(help="CSV of the planned accounts: company_sso_id,due (the day is optional).")
    ] = "",
    as_format: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.MARKDOWN,
    output: Annotated[str, typer.Option(help="Write it into this file.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Report the rollout: accounts by state, rows done and left, burn-up, forecast, gates and the team that is next."""
    from pymongo.errors import PyMongoError

    from ops.checks.rollout.read import read_accounts, read_plan
    from ops.jobs import migrations
    from schemas.process.mongodb import connect

    planned = read_plan(plan) if plan else {}
    now = datetime.now(UTC)
    database = connect(host.connections(), app_name="crm-replay-report")
    try:
        migrations.require_current(database)
        found = rollout(read_accounts(database, planned, now), now)
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()
    chosen = Format.JSON if as_json else as_format
    text = {
        Format.MARKDOWN: lambda: markdown(found),
        Format.HTML: lambda: html(found),
        Format.JSON: lambda: json.dumps(as_dict(found), indent=2) + "\n",
    }[chosen]()
    if not output:
        typer.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        raise BadInputError(f"{output}: {error.strerror}", "name a file that can be written with --output") from error
