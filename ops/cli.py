"""`crm-replay`: start anything, look at anything. Wiring only; each command lives with what it runs."""

import sys
from collections.abc import Sequence

import click
import typer
from rich.console import Console

from schemas.errors import ReplayError

app = typer.Typer(
    name="crm-replay",
    help="Replay a CRM's audit history, account by account, into a customer data platform's activity logs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what the operator has to act on is one line on standard error, and the exit code says whose it is.

    0 done, 1 the work went wrong (halted, out of balance), 2 the call or its surroundings are wrong, 130 interrupted.
    """
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except ReplayError as error:
        Console(stderr=True, soft_wrap=True).print(f"crm-replay: {error}", style="red", highlight=False, markup=False)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        Console(stderr=True).print("crm-replay: interrupted", style="red")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
