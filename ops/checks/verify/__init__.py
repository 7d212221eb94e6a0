"""`crm-replay verify`: proves an account's copy without trusting a counter.

The account's source rows are read again in id segments and transformed again, by the code that the producer and the
processors run, in one process a core; the documents of each segment are compared with what came of it, byte for byte.
What was proved equal is sealed: as long as nothing it follows from has changed, it need not be transformed again.

    model, compare, expected   pure: findings and their sums; two documents; what a row has to end as
    seals                      what was proved, by which fingerprints; pure but for where they are kept
    gather                     I/O: what has to be known before a row is read
    segments, workers          I/O: one worker's segments; the processes
    copy, topics               I/O: documents that no segment finds; the account's topics
    check                      the whole, in order
    naming, http_strays        for the end of a run: ids named, documents that came by HTTP
"""

from ops.checks.verify.check import VerifyOptions, verify_account
from ops.checks.verify.model import Finding, Kind, Report

__all__ = ["Finding", "Kind", "Report", "VerifyOptions", "verify_account"]
