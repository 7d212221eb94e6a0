"""`crm-replay`: the table of commands, and where each of them is.

Only the called command is imported: a worker's start or a status must not wait for the imports of others. The image
has neither `ops.local` nor `ops.bench`: there, the commands that need them are not in the table.
"""

import atexit
import gc
import io
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import Abort, Exit, TyperException

from schemas.compiled import hot_paths
from schemas.errors import ReplayError
from schemas.process.client_errors import kind_of, server_of
from schemas.secrets import without_secrets
from schemas.vocabulary import ExitCode

PACKAGE = "crm-audit-replay"
GC_THRESHOLD = 50_000  # imports make some 100,000 objects, and all of them stay


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is: a function, or a Typer with commands of its own."""

    module: str
    attribute: str = "app"
    needs: tuple[str, ...] = ()  # packages of the workbench, which the image does not have

    @property
    def is_there(self) -> bool:
        """Whether what the command needs is installed."""
        return all(find_spec(package) is not None for package in self.needs)


ALL = {
    "run": Place("ops.cli.replay", "run"),
    "resume": Place("ops.cli.replay", "resume"),
    "rerun": Place("ops.cli.replay", "rerun"),
    "status": Place("ops.cli.replay", "status"),
    "halt": Place("ops.cli.requests", "halt"),
    "rollback": Place("ops.cli.requests", "rollback"),
    "verify": Place("ops.cli.verify", "verify"),
    "explain": Place("ops.cli.explain", "explain"),
    "dlq": Place("ops.cli.dlq"),
    "enrich": Place("ops.cli.enrich", "enrich"),
    "preflight": Place("ops.cli.preflight", "preflight"),
    "dry-run": Place("ops.cli.dry_run", "dry_run"),
    "transform": Place("ops.cli.transform", "transform_rows"),
    "control": Place("ops.cli.control", "control"),
    "runner": Place("ops.cli.runner", "runner"),
    "trigger": Place("ops.cli.requests", "trigger"),
    "flag": Place("ops.cli.requests", "flag"),
    "produce": Place("ops.cli.replay", "produce"),
    "process": Place("ops.cli.replay", "process"),
    "sink": Place("ops.cli.replay", "sink"),
    "live": Place("ops.cli.live", "live"),
    "cdc": Place("ops.cli.cdc"),
    "seam": Place("ops.cli.seam", "seam"),
    "check": Place("ops.cli.check", "check"),
    "report": Place("ops.cli.report", "report"),
    "subject": Place("ops.cli.subject"),
    "migrate": Place("ops.cli.migrate"),
    "services": Place("ops.cli.services", needs=("ops.local",)),
    "generate": Place("ops.cli.generate", "generate", needs=("ops.local",)),
    "demo": Place("ops.cli.demo", "demo", needs=("ops.local",)),
    "bench": Place("ops.cli.bench", "bench", needs=("ops.local", "ops.bench")),
}
COMMANDS = {name: place for name, place in ALL.items() if place.is_there}


def application(only: str | None = None) -> typer.Typer:
    """Return the command line with all commands, or with one."""
    app = typer.Typer(
        name="crm-replay",
        help="Replay a CRM's audit history, account by account, into a customer data platform's activity logs.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_whole)  # also because a Typer with a single command would take that for itself
    for name, place in COMMANDS.items():
        if only is None or name == only:
            found = getattr(import_module(place.module), place.attribute)
            if isinstance(found, typer.Typer):
                app.add_typer(found, name=name)
            else:
                app.command(name)(found)
    if only in (None, "reference") and len(COMMANDS) == len(ALL):  # a part would be no reference
        app.command("reference", hidden=True)(reference)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crm-replay {version(PACKAGE)}\nhot paths: {hot_paths()}")
        raise Exit(0)


def _whole(
    shown: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Handle the options before a command."""


def reference(
    directory: Annotated[Path, typer.Argument(help="Directory of the pages.")] = Path("docs/reference"),
) -> None:
    """Write the pages of the reference from the code."""
    from typer.main import get_command

    from ops.cli.reference import write

    write(get_command(application()), directory)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error for the operator is one line on standard error, and the exit code gives its kind.

    0 done, 1 the work went wrong (halted, out of balance), 2 the call or its environment is wrong, 130 interrupted.
    """
    _print_on_any_terminal()
    gc.set_threshold(GC_THRESHOLD)
    sys.excepthook = _show_defect
    atexit.register(gc.freeze)  # what exists at the end is freed with the process; the collector need not scan it
    words = sys.argv[1:] if argv is None else list(argv)
    called = words[0] if words and words[0] in {*COMMANDS, "reference", "--version"} else None
    try:
        code = application(called)(args=words, standalone_mode=False)
    except ReplayError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except Exit as error:
        sys.exit(error.exit_code)
    except TyperException as error:  # a usage error shows how the command is called
        show = getattr(error, "show", None)
        show() if show is not None else Console(stderr=True).print(f"crm-replay: {error}", markup=False)
        sys.exit(ExitCode.BAD_INPUT)
    except (KeyboardInterrupt, Abort):
        Console(stderr=True).print("crm-replay: interrupted", style="red")
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        failed = of_a_server(error)
        if failed is None:
            raise  # a defect of ours: its traceback helps
        _print_error(failed)
        sys.exit(ExitCode.FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _print_on_any_terminal() -> None:
    """Print characters outside of the encoding as escapes: an ASCII terminal must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def of_a_server(error: Exception) -> ReplayError | None:
    """Return our error for a server's error that the command did not expect, None if it is none.

    Commands report an unavailable server themselves. This is for one that fails, or refuses, in the middle.
    """
    server, kind = server_of(error), kind_of(error)
    if server is None or kind is None:
        return None
    what = type(error).__name__  # its text can quote a document or a row, but for Kafka's
    if server == "Kafka" and error.args:
        what = str(getattr(error.args[0], "str", lambda: what)())
    return kind(f"{server} failed during the command ({what})", "check the server, then run the same command again")


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a defect's traceback as Python does, without users and passwords of addresses in it."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def _print_error(error: ReplayError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"crm-replay: {error}", style="red", highlight=False, markup=False)
