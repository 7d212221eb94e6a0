"""`crm-replay verify`: proves an account's copy without trusting a counter.

The account's source rows are read again in id segments and transformed again, by the code that the producer and the
processors run, in one process a core; the documents of each segment are compared with the result, byte for byte.
Proved chunks are sealed: while none of their inputs has changed, they are not transformed again.

    model, compare, expected   pure: findings and their sums; two documents; a row's expected outcome
    seals                      proved chunks and their fingerprints; pure except for their store
    gather                     I/O: the inputs, before a row is read
    segments, workers          I/O: one worker's segments; the processes
    copy, topics               I/O: documents that no segment finds; the account's topics
    check                      all steps, in order
    naming, http_strays        for the end of a run: ids named, documents that came by HTTP
"""

from ops.checks.verify.check import VerifyOptions, verify_account
from ops.checks.verify.model import Finding, Kind, Report

__all__ = ["Finding", "Kind", "Report", "VerifyOptions", "verify_account"]
