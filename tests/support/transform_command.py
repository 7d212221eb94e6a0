"""`crm-replay transform` within the test's process."""

from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from ops.cli.transform import transform_rows
from schemas.errors import BadInputError


def run(*arguments: str | Path, text: str | bytes | None = None) -> Result:
    """Run the command; what it says of bad input is raised."""
    app = typer.Typer()
    app.command()(transform_rows)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    if isinstance(result.exception, BadInputError):
        raise result.exception
    return result
