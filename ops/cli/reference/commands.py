"""Every command of `crm-replay` with its arguments and options."""

from collections.abc import Iterator
from typing import Any

from ops.cli.reference.text import MADE, table

EXIT_CODES = (
    ("0", "done"),
    ("1", "the work went wrong: halted, out of balance, differences found, rows failed again"),
    ("2", "the call, a file or a server's address is wrong; nothing has been changed"),
    ("3", "of a sink: the job is halted, its offsets are kept"),
    ("4", "of a worker or a live feed: its topic was deleted and recreated"),
    ("5", "of a producer: stopped on request, its cursor is kept"),
    ("130", "interrupted; can be resumed"),
)
HEAD = f"""# Commands

{MADE} `crm-replay COMMAND --help` shows the same.

Exit codes:

{table(("code", "meaning"), EXIT_CODES)}"""


def page(root: Any) -> str:
    """Return the page as Markdown; `root` is the command `crm-replay`."""
    return HEAD + "".join(_command(path, command) for path, command in _walk("crm-replay", root))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    # By what they have, not by type: Typer's commands are of a click of its own.
    if (inside := getattr(command, "commands", None)) is not None:
        for name, inner in sorted(inside.items()):
            if not inner.hidden:
                yield from _walk(f"{path} {name}", inner)
    else:
        yield path, command


def _command(path: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    words = "".join(f" {'' if each.required else '['}{_name(each)}{'' if each.required else ']'}" for each in arguments)
    text = "\n".join(line.strip() for line in (command.help or "").strip().splitlines())
    rows = [(f"`{_name(each)}`", getattr(each, "help", None) or "", "") for each in arguments]
    rows += [(_spelling(each), each.help or "", _default(each)) for each in options]
    listed = "\n" + table(("option", "what", "default"), rows) if rows else ""
    return f"\n## `{path}{words}`\n\n{text}\n{listed}"


def _name(parameter: Any) -> str:
    return str(parameter.name).upper()


def _spelling(option: Any) -> str:
    on = f"`{option.opts[0]}`"
    return f"{on}, `{option.secondary_opts[0]}`" if option.secondary_opts else on


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    if value in (None, "", ()) or callable(value) or (value is False and not option.secondary_opts):
        return ""
    if option.is_flag and option.secondary_opts:
        return f"`{(option.opts if value else option.secondary_opts)[0]}`"
    return f"`{value}`"
