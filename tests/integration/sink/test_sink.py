"""A sink on real Kafka and MongoDB: what it writes, counts, dead-letters and commits."""

import pytest

from tests.integration.sink.conftest import Account

pytestmark = pytest.mark.services


def test_each_outcome_ends_in_its_bin(account: Account) -> None:
    account.publish(
        [
            account.log(1),
            account.skip(2),
            account.log(3),
            account.dead_letter(4),
            account.skip(5, "other"),
            account.end(),
        ]
    )
    sink = account.run_sink()
    totals = account.totals
    assert account.external_ids() == ["crm_audit:1", "crm_audit:3"]
    assert (totals.migrated, totals.skipped, totals.failed) == (
        2,
        {"contact_not_found": 1, "other": 1},
        {"undecodable_changes": 1},
    )
    assert (totals.partitions_ended, totals.last_audit_id) == (1, 5)
    assert account.committed() == {0: 6}
    assert account.dead_letters() == [account.dead_letter(4)]
    assert sink.metrics.inserted == 2
