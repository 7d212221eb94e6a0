"""`crm-replay check`: a nightly check of every account's copy, bounded in time; its exit code is a gate.

    model  pure: results by account, as text, JSON and JUnit; which ids a night's sample takes
    run    I/O: one function a check

It proves a sample where `verify` proves all: each night takes other segments, so that every row is checked in time.
Read-only.
"""

from ops.checks.nightly.model import Results
from ops.checks.nightly.run import CheckOptions, check_accounts

__all__ = ["CheckOptions", "Results", "check_accounts"]
