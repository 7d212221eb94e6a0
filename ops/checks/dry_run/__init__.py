"""`crm-replay dry-run`: the results of a replay, by its real read and transform path, without writing anything.

    model  pure: the counts, examples without personal values, the report
    run    I/O: rows from the source, lookups from source and platform, the processors' own rules

Kafka, if it is available, is only queried for its record size limit; nothing is produced, inserted or saved.
"""

from ops.checks.dry_run.model import Report
from ops.checks.dry_run.run import DryRunOptions, dry_run_account

__all__ = ["DryRunOptions", "Report", "dry_run_account"]
