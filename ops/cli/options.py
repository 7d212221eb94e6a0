"""Options that several commands share, and the parsing of times."""

from datetime import UTC, datetime
from typing import Annotated

import typer

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
Live = Annotated[bool, typer.Option("--live", help="Of a live feed, not of an account's job.")]
Feed = Annotated[str, typer.Option(help="With --live: the feed's name.")]
Mapping = Annotated[str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)]
JobMapping = Annotated[str, typer.Option(help="Source mapping file; default: the job's.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Partitions = Annotated[int, typer.Option(min=1, max=1024, help="Partitions of the account's topics.")]
Workers = Annotated[int, typer.Option(min=1, max=64)]
Detach = Annotated[bool, typer.Option("--detach", help="Leave it to a runner (crm-replay runner), and return.")]
DateRangeStart = Annotated[
    datetime | None, typer.Option(help="Leave out rows created before this (UTC).", show_default=False)
]


def utc(moment: datetime | None) -> datetime | None:
    """Return the moment with its zone; one without is UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
