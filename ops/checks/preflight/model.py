"""Pure: the report of an account's checks."""

from dataclasses import dataclass
from typing import Any

from ops.checks.model import Check, Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of an account, in the order in which they are shown."""

    company_sso_id: str
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the replay may start: no check has failed."""
        return all(check.verdict is not Verdict.FAIL for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {
            "company_sso_id": self.company_sso_id,
            "ok": self.ok,
            "checks": [check.as_dict() for check in self.checks],
            "seconds": round(self.seconds, 3),
        }
