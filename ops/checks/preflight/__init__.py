"""`crm-replay preflight`: every question that has to be answered before an account's first row is read.

    model        pure: a check and its verdict, the report
    plan         pure: what PostgreSQL says of the page query, judged
    estimates    pure: how long it takes and how many bytes it makes, and on what that rests
    source, changes, kafka, mongodb, directory    I/O: one small function a check, each returning a value
    lanes        one thread a server: one that hangs costs its own checks and nobody else's
    run          the whole, in order

Nothing is written anywhere. The one attempt is an UPDATE of no row in a transaction that is rolled back: it shows that
the role may not, and changes nothing where it may.
"""

from ops.checks.preflight.model import Check, Report, Verdict
from ops.checks.preflight.run import preflight_account

__all__ = ["Check", "Report", "Verdict", "preflight_account"]
