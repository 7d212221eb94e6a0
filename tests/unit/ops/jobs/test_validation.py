"""Which external ids are ours."""

import pytest

from schemas.identity import audit_id_of


@pytest.mark.parametrize(
    ("external_id", "audit_id"),
    [
        ("crm_audit:1", 1),
        ("crm_audit:9223372036854775807", 2**63 - 1),
        ("crm_audit:9223372036854775808", None),  # no bigint: a query for it would fail
        ("crm_audit:" + "9" * 400, None),
        ("crm_audit:007", None),  # not how we write it: a second document of row 7
        ("crm_audit:٣", None),
        ("crm_audit:", None),
        ("live:1", None),
        ("1", None),
        (None, None),
        (17, None),
    ],
)
def test_only_what_the_replay_writes_is_taken_for_an_audit_id(external_id: object, audit_id: int | None) -> None:
    assert audit_id_of(external_id) == audit_id
