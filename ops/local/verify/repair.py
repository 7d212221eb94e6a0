"""What a repair changes: the documents that are wrong go, and the rows that were named go through the topology again.

Order of effects: delete, then replay. Dying in between leaves rows missing, which the next check names; the other way
round the unique index would take the wrong document for the row's.
"""

from typing import Any

from ops.local.verify import copy
from ops.local.verify.model import REPAIR_MAX, Kind, Report
from ops.local.view import RunView
from schemas.connections import Connections
from schemas.errors import BadInputError
from sink.database import connect


def repair(report: Report, run_options: Any, connections: Connections, view: RunView) -> tuple[int, int]:
    """Delete the extra and different documents, replay the rows; return how many of each.

    Raises BadInputError, with nothing changed, for more than a repair is made for.
    """
    tally, account = report.tally, report.company_sso_id
    if len(tally.replay) > REPAIR_MAX or len(tally.delete) > REPAIR_MAX:
        raise BadInputError(
            f"{sum(tally.found.values()):,} rows and documents of {account} are wrong, over {REPAIR_MAX:,}",
            f"replay it as a whole: crm-replay rerun --account {account}",
        )
    deleted = 0
    if tally.delete:
        view.note(
            f"deleting {len(tally.delete):,} documents of {account}"
            f" ({tally.found[Kind.EXTRA.value]:,} extra, {tally.found[Kind.DIFFERENT.value]:,} different):"
            " each by its _id, only with this company_sso_id and the replay's source_tag"
        )
        database = connect(connections, app_name="crm-replay-verify")
        try:
            deleted = copy.delete(database, account, tally.delete)
        finally:
            database.client.close()
    audit_ids = sorted(set(tally.replay))
    if audit_ids:
        view.note(f"replaying {len(audit_ids):,} rows of {account}")
        from ops.local.runner import run_selected

        run_selected(account, audit_ids, run_options, connections, view)
    return deleted, len(audit_ids)
