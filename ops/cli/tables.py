"""The layout of every table of counts."""

from rich.markup import escape
from rich.table import Table


def counts_table(title: str) -> Table:
    """Return an empty table of names and right-aligned counts; `title` is shown as it is, without markup."""
    table = Table(title=escape(title), show_header=False, title_justify="left", min_width=44)
    table.add_column()
    table.add_column(justify="right")
    return table
