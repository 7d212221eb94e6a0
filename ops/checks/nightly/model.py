"""Pure: the results of a night, as text, JSON and JUnit, and where its sample is taken."""

import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.checks.model import Check, Verdict, worst

PLATFORM = "platform"  # the name for checks that are not of an account


@dataclass(slots=True)
class AccountResult:
    """The checks of one account, or of the platform."""

    name: str
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of its checks."""
        return worst(check.verdict for check in self.checks)


@dataclass(slots=True)
class Results:
    """A night's results."""

    results: list[AccountResult]
    seed: int
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no check has failed: a deployment may proceed."""
        return all(result.verdict is not Verdict.FAIL for result in self.results)

    def counted(self, verdict: Verdict) -> int:
        """Return how many checks have a verdict."""
        return sum(check.verdict is verdict for result in self.results for check in result.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return them as JSON takes it."""
        return {
            "ok": self.ok,
            "seed": self.seed,
            "checks": {verdict.value: self.counted(verdict) for verdict in Verdict},
            "results": [
                {
                    "company_sso_id": None if result.name == PLATFORM else result.name,
                    "verdict": result.verdict.value,
                    "checks": [check.as_dict() for check in result.checks],
                    "seconds": round(result.seconds, 3),
                }
                for result in self.results
            ],
            "seconds": round(self.seconds, 3),
        }

    def as_junit(self) -> bytes:
        """Return them as JUnit XML: a suite for each account, a case for each check; a warning is its output."""
        suites = ET.Element(
            "testsuites",
            name="crm-replay check",
            tests=str(sum(len(result.checks) for result in self.results)),
            failures=str(self.counted(Verdict.FAIL)),
            time=f"{self.seconds:.3f}",
        )
        for result in self.results:
            failed = sum(check.verdict is Verdict.FAIL for check in result.checks)
            suite = ET.SubElement(
                suites,
                "testsuite",
                name=_legal(result.name),
                tests=str(len(result.checks)),
                failures=str(failed),
                time=f"{result.seconds:.3f}",
            )
            for check in result.checks:
                case = ET.SubElement(suite, "testcase", classname=f"crm-replay.{_legal(result.name)}", name=check.name)
                summary = _legal(f"{check.found}\n{check.to_do}".strip())
                if check.verdict is Verdict.FAIL:
                    ET.SubElement(case, "failure", message=_legal(check.found)).text = summary
                else:
                    ET.SubElement(case, "system-out").text = summary
        ET.indent(suites)
        return bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True))


def _legal(text: str) -> str:
    """Return a text without the characters that XML 1.0 has no place for."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )


def segments(
    low: int, top: int, rows: int, *, places: int, rows_a_place: int, seed: int, spread: Sequence[int] = ()
) -> list[tuple[int, int]]:
    """Return the id ranges (low, high] that one night samples: all ids of a small account.

    `spread`: ids with about the same number of rows between neighbours; then each row is equally likely, else each
    id. The same seed takes the same places. The newest range is always among them: most faults are there.
    """
    if top <= low or rows <= 0:
        return []
    if rows <= places * rows_a_place:
        return [(low, top)]
    width = max(1, (top - low) * rows_a_place // rows)
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    inside = sorted({id_ for id_ in spread if low <= id_ <= top})
    found = {(max(low, top - width), top)}
    for _ in range(places - 1):
        if len(inside) > 1:
            at = chance.randrange(len(inside) - 1)
            begin = chance.randint(inside[at], inside[at + 1])
        else:
            begin = chance.randint(low, top - 1)
        found.add((begin, min(top, begin + width)))
    return _apart(sorted(found))


def _apart(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges in rising order, overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for begin, end in ranges:
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined
