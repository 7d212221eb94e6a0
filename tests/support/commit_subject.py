"""Pure, but for the file: whether the subject of a commit message has the form that CONTRIBUTING asks for."""

import re
import sys
from pathlib import Path

LENGTH_MAX = 72
FORM = re.compile(r"(?P<area>[a-z][a-z0-9 _-]*(, [a-z][a-z0-9 _-]*)*): (?P<what>[a-z].*[^.])")


def complaint_about(message: str) -> str | None:
    """Return what is wrong with the message's first line and what to do, or None."""
    subject = message.split("\n", 1)[0].rstrip()
    if len(subject) > LENGTH_MAX:
        return f"the subject has {len(subject)} characters: {LENGTH_MAX} at most"
    if not FORM.fullmatch(subject):
        return f"the subject {subject!r} has another form: write `area: imperative`, without a full stop"
    return None


if __name__ == "__main__":
    sys.exit(complaint_about(Path(sys.argv[1]).read_text("utf-8")))
