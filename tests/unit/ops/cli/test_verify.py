"""What verify prints of a finding."""

import pytest

from ops.checks.verify.model import Finding, Kind
from ops.cli.verify import line_of


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (
            Finding(Kind.EXTRA, 7, None, "it is newer", external_id="crm_audit:7", document_id="ab"),
            "extra: row 7, document ab (crm_audit:7): it is newer",
        ),
        (
            Finding(Kind.EXTRA, None, None, "its external_id is not one of the replay", document_id="ab"),
            "extra: no row of the account, document ab (without external_id): its external_id is not one of the replay",
        ),
        (Finding(Kind.MISSING, 7, 0, "never published"), "missing: row 7, 1 min old: never published"),
    ],
)
def test_a_finding_is_one_line_whatever_is_known_of_it(finding: Finding, line: str) -> None:
    assert line_of(finding.as_dict(60_000_000)) == line
