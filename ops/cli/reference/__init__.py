"""The pages below docs/reference, generated from the code: `crm-replay reference`. A test compares them."""

from pathlib import Path
from typing import Any

from ops.cli.reference import commands, http, metrics, reasons, settings


def pages(root: Any) -> dict[str, str]:
    """Return every page by its file's name; `root` is the command `crm-replay`."""
    return {
        "commands.md": commands.page(root),
        "http.md": http.page(),
        "metrics.md": metrics.page(),
        "reasons.md": reasons.page(),
        "settings.md": settings.page(),
    }


def write(root: Any, directory: Path) -> None:
    """Write every page into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in pages(root).items():
        (directory / name).write_text(page, encoding="utf-8")
