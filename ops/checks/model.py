"""Pure: a check and its verdict, shared by preflight, dry run and nightly check."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The verdict of a check. Printed and stored: add values, never rename one."""

    OK = "ok"
    WARN = "warn"  # the replay works; the operator should know before it starts
    FAIL = "fail"  # do not start


_RANK = {Verdict.OK: 0, Verdict.WARN: 1, Verdict.FAIL: 2}


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. `found` and `to_do` are one line each; `facts` has the numbers behind them.

    None of them holds personal data: no email, no name, no value of a row.
    """

    name: str
    verdict: Verdict
    found: str
    to_do: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON takes it."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "found": self.found,
            "to_do": self.to_do,
            "facts": dict(self.facts),
        }


def ok(name: str, found: str, /, **facts: Any) -> Check:
    """Return a check that is as it should be."""
    return Check(name, Verdict.OK, found, "", facts)


def warn(name: str, found: str, to_do: str, /, **facts: Any) -> Check:
    """Return a check that the operator should know of."""
    return Check(name, Verdict.WARN, found, to_do, facts)


def fail(name: str, found: str, to_do: str, /, **facts: Any) -> Check:
    """Return a check with which the replay must not start."""
    return Check(name, Verdict.FAIL, found, to_do, facts)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of them; ok if there are none."""
    return max(verdicts, key=_RANK.__getitem__, default=Verdict.OK)


def join(name: str, findings: Iterable[tuple[Verdict, str, str]], otherwise: str, /, **facts: Any) -> Check:
    """Return several findings (verdict, found, to_do) as one check; none of them: ok, and `otherwise` is found."""
    listed = sorted(findings, key=lambda finding: -_RANK[finding[0]])
    if not listed:
        return Check(name, Verdict.OK, otherwise, "", facts)
    to_do = "; ".join(dict.fromkeys(finding[2] for finding in listed if finding[2]))
    return Check(name, listed[0][0], "; ".join(finding[1] for finding in listed), to_do, facts)


def duration_text(seconds: float) -> str:
    """Return a time span for people: `2 h 05 min`, `12 min`, `40 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole // 60 % 60:02} min"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"


def bytes_text(count: float) -> str:
    """Return a number of bytes for people: `1.5 GB`, `300 kB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
