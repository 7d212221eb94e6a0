"""The ledger of a run, the authoritative check of it: every source row in exactly one bin, every document counted."""

from collections.abc import Callable

from ops.jobs.jobs import Ledger
from schemas.process.mongodb import Database
from sink.progress import RunTotals
from sink.rollback import documents_of


def validate(
    database: Database, company_sso_id: str, totals: RunTotals, source_rows: int | Callable[[], int]
) -> Ledger:
    """Return the ledger of a run whose every partition has ended; documents are counted by index.

    `totals` are the sinks' counts, `source_rows` is the source's own COUNT in scope up to `top`. A run over part of the
    history only leaves the account with more documents than it accounts for; its `accuracy_pct` is then over 100.
    """
    return Ledger(
        source_rows=source_rows if isinstance(source_rows, int) else source_rows(),
        migrated=totals.migrated,
        skipped=dict(totals.skipped),
        failed=totals.failed_total,
        foreign=totals.foreign_total,
        documents=documents_of(database, company_sso_id),
    )
