"""Every reason, cause, status and kind that is stored, sent or graphed."""

import inspect
import re
from enum import StrEnum

from ops.cli.reference.text import MADE, table
from schemas import vocabulary

HEAD = f"""# Reasons, causes and states

{MADE}

These words are stored, sent and graphed: new ones are added, none is ever renamed.
"""


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(_section(found) for found in vars(vocabulary).values() if _is_ours(found))


def _is_ours(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, StrEnum) and found is not StrEnum


def _section(words: type[StrEnum]) -> str:
    comments = dict(re.findall(r'(?m)^    [A-Z_]+ = "([^"]+)"(?:  # (.*))?$', inspect.getsource(words)))
    title = re.sub(r"(?<!^)(?=[A-Z])", " ", words.__name__).capitalize()
    rows = [(f"`{word.value}`", comments.get(word.value, "")) for word in words]
    return f"\n## {title}\n\n{inspect.getdoc(words)}\n\n{table(('value', 'meaning'), rows)}"
