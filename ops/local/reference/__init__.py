"""The pages below docs/reference, made from the code: `python -m ops.local.reference`. A test holds them equal."""

from collections.abc import Callable, Mapping

from ops.local.reference import commands, http, metrics, reasons, settings

PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands.page,
    "http.md": http.page,
    "metrics.md": metrics.page,
    "reasons.md": reasons.page,
    "settings.md": settings.page,
}
