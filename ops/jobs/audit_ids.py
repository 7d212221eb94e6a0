"""The syntax of audit ids on a command line, for every command that takes some."""

import re
from pathlib import Path

from schemas.errors import BadInputError

AUDIT_IDS_MAX = 100_000  # of one replay of chosen rows; they travel in one document


def parse_audit_ids(text: str) -> list[int]:
    """Return the ids in `17,18,20-25`, or in the file that `@FILE` names. Raises BadInputError naming what is wrong."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{text[1:]} cannot be read ({error})", "name a file with audit ids") from error
    ids: list[int] = []
    for word in text.replace(",", " ").split():
        bounds = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", word, re.ASCII)
        if bounds is None:
            raise BadInputError(f"{word} is no audit id", "give numbers like 17,18,20-25")
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if high < low or len(ids) + high - low >= AUDIT_IDS_MAX:
            raise BadInputError(f"{word} is too much, or backwards", f"at most {AUDIT_IDS_MAX:,} ids")
        ids.extend(range(low, high + 1))
    if not ids:
        raise BadInputError("no audit ids were given", "give numbers like 17,18,20-25")
    return ids
