"""Pure: addresses and messages without the passwords that they may carry. The one place that knows how those look.

Every `ReplayError` has its text from `without_secrets`, and so has every line of a log (`schemas.logs`); what shows an
address on purpose shows it by `shown`.
"""

import re

_NAMES = r"password|passwd|pwd|secret|token|authorization|api[_-]?key|passphrase"
# In an address everything up to the last @ before a blank: a password may hold a / or @ that should have been encoded.
_USER_INFO = re.compile(r"(?<=://)[^\s\"'<>]{1,2048}@")
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (_USER_INFO, "[credentials]@"),
    (re.compile(r"(?i)\b(basic|bearer)\s+[\w+/=.~-]{8,}"), r"\1 [secret]"),
    # `password=x`, `sslpassword='x y'`, `"token": "x"`, `AWS_SESSION_TOKEN:x`, `?api_key=x&`; no `name: explanation`
    (
        re.compile(
            rf"(?i)((?:{_NAMES})(?:\s*=\s*|[\"']\s*:\s*|:(?!\s)))"
            r"(?!\[secret\]|(?:basic|bearer)\s\[)(\"[^\"]*\"|'(?:[^'\\]|\\.)*'|[^\s&,;}]+)"
        ),
        r"\1[secret]",
    ),
)  # fmt: skip
# One of these is in every text that a rule changes, as lower case: errors are made by the thousand where a topic holds
# what is not ours, and the rules take twenty times as long as making one.
_MARKS = ("://", "pass", "pwd", "secret", "token", "authorization", "api", "basic", "bearer")
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'")


def without_secrets(text: str) -> str:
    """Return a text without user names and passwords of addresses, and without values named like secrets."""
    lowered = text.lower()
    if not any(mark in lowered for mark in _MARKS):
        return text
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def shown(address: str) -> str:
    """Return an address (a URL, or libpq's `name=value` words) as it may be shown: without credentials and query."""
    return without_secrets(_USER_INFO.sub("", address).partition("?")[0])


def about(error: BaseException, address: str) -> str:
    """Return what a parser says about an address, in one line, without the parts of it that it quotes."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

    def hide(found: re.Match[str]) -> str:
        part = found.group(1) or found.group(2) or ""
        return "…" if part and part in address else found.group()

    return without_secrets(_QUOTED.sub(hide, first))
