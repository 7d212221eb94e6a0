"""Pure: addresses and messages without the passwords that they may carry. The only place that recognises them.

Every `ReplayError` has its text from `without_secrets`, and so has every line of a log (`schemas.process.logs`); code
that shows an address on purpose uses `shown`.
"""

import re

_NAMES = r"password|passwd|pwd|secret|token|authorization|api[_-]?key|passphrase"
_SECRET_NAME = re.compile(rf"(?i){_NAMES}")
# In an address everything up to the last @ before a blank: a password may hold a / or @ that should have been encoded.
_USER_INFO = re.compile(r"(?<=://)[^\s\"'<>]{1,2048}@")
# And one that is no address may hold blanks and quotes. What follows the colon of `host:8081` is no password.
_WITH_BLANKS = re.compile(r"(?<=://)[^\s/:@?#\"'<>\[\]]{0,256}:(?!\d{1,5}(?:[\s/?#,;:.)\"']|$))[^\n]{1,256}@(?=[\w\[])")
_NO_SCHEME = re.compile(
    r"(?<![^\s\"'(=,\[])[^\s:/@\"'=]{1,64}:(?!//)[^\s\"'<>]{1,256}@(?=[\w.\[\]-]{1,255}[:/])"
)  # `user:x@host:1`
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (_USER_INFO, "[credentials]@"),
    (_WITH_BLANKS, "[credentials]@"),
    (_NO_SCHEME, "[credentials]@"),
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
# libpq's parameters that name server, database and user; a value is quoted or ends at a blank.
_WORD = re.compile(r"(?:^|(?<=\s))(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)", re.DOTALL)
_SHOWN_WORDS = frozenset(("host", "hostaddr", "port", "dbname", "user", "sslmode"))
_PARAMETER = re.compile(r"\?[\w.-]+=")
# One of these is in every text that a rule changes, as lower case: errors are made by the thousand where a topic holds
# what is not ours, and the rules take twenty times as long as making one.
_MARKS = ("@", "://", "pass", "pwd", "secret", "token", "authorization", "api", "basic", "bearer")
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
    scheme, is_url, rest = address.partition("://")
    if is_url:
        user_info, _, place = rest.rpartition("@")
        if _PARAMETER.search(user_info):  # of a password in front, or a query with an @: undecidable
            place = "…"
        return without_secrets(f"{scheme}://{place.partition('?')[0]}")
    words = list(_WORD.finditer(address))
    if not words:
        return without_secrets(address.rpartition("@")[2].partition("?")[0])
    return " ".join(
        f"{name}={value}" if name in _SHOWN_WORDS else f"{name}=[secret]" if _SECRET_NAME.search(name) else f"{name}=…"
        for name, value in (word.groups() for word in words)
    )


def about(error: BaseException, address: str) -> str:
    """Return a parser's message about an address, in one line, without the quoted parts of the address."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

    def hide(found: re.Match[str]) -> str:
        part = found.group(1) or found.group(2) or ""
        return "…" if part and part in address else found.group()

    return without_secrets(_QUOTED.sub(hide, first))
