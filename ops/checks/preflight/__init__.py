"""`crm-replay preflight`: every check before an account's first row is read.

    model        pure: the report; a check and its verdict are in ops.checks.model
    plan         pure: PostgreSQL's plan of the page query, judged
    source, changes, kafka, mongodb, directory    I/O: one small function a check, each returning a value
    lanes        one thread a server: one that hangs costs its own checks only
    run          all checks, in order

It writes nothing. The one attempt is an UPDATE of no row in a transaction that is rolled back: it shows whether
the role may write.
"""

from ops.checks.model import Check, Verdict
from ops.checks.preflight.model import Report
from ops.checks.preflight.run import preflight_account

__all__ = ["Check", "Report", "Verdict", "preflight_account"]
