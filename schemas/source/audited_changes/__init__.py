"""`audited_changes`, as the audited gem stored it, into plain columns. Pure.

`read` is the only entry point. The text is YAML as Psych wrote it, JSON text (a text column that was once json), or the
printed value of a `json` or `jsonb` column. Values are as in `ops/local/sample/README.md`; `scalars` has the
table. A text that is unreadable as a whole is an `Unreadable`, never an exception.
"""

from typing import Any, NamedTuple, final

from schemas.source.audited_changes.direct import read_directly
from schemas.source.audited_changes.json_text import read_json
from schemas.source.audited_changes.limits import LENGTH_MAX, EncryptedError, UnreadableError
from schemas.source.audited_changes.nodes import read_yaml

__all__ = ["Columns", "Unreadable", "read"]


class Columns(NamedTuple):
    """What one row changed, by column; in an update mostly `[old, new]`."""

    values: dict[str, Any]
    refused: int  # values that were Ruby objects and are now `{"$ruby": "ClassName"}`
    direct: bool  # read by the short way


@final
class Unreadable(NamedTuple):
    """A text that cannot be read as a whole."""

    why: str  # one line, with nothing of the text's content
    too_large: bool = False  # longer than any document may be
    encrypted: bool = False  # a message of ActiveRecord's encryption


_NO_CLOCKS: frozenset[str] = frozenset()


def read(text: str, is_json: bool = False, clock_columns: frozenset[str] = _NO_CLOCKS) -> Columns | Unreadable:
    """Return the columns in an `audited_changes`; an empty text (NULL) has none.

    `is_json`: the column's type is json or jsonb. A text that does not begin with `---` is JSON text, as ActiveRecord
    up to 6.1 takes it; if it is none, YAML is tried, as 7.2 does. `clock_columns` hold times of day: their instants
    are given as the local clock time (`09:30:00`) where the text has it.
    """
    if not text:
        return Columns({}, 0, True)
    if len(text) > LENGTH_MAX:
        return Unreadable(f"longer than {LENGTH_MAX} characters", too_large=True)
    try:
        if is_json:
            return Columns(read_json(text) or {}, 0, True)
        if not text.startswith("---"):
            return _json_or_yaml(text, clock_columns)
        if (not clock_columns or not any(column in text for column in clock_columns)) and (
            direct := read_directly(text)
        ) is not None:
            return Columns(direct, 0, True)
        values, refused = read_yaml(text, clock_columns)
        return Columns(values or {}, refused, False)
    except UnreadableError as error:
        return Unreadable(str(error), encrypted=isinstance(error, EncryptedError))


def _json_or_yaml(text: str, clock_columns: frozenset[str]) -> Columns:
    try:
        return Columns(read_json(text) or {}, 0, True)
    except EncryptedError:
        raise  # it is YAML, too
    except UnreadableError as not_json:
        try:
            values, refused = read_yaml(text, clock_columns)
        except UnreadableError:
            raise not_json from None
        return Columns(values or {}, refused, False)
