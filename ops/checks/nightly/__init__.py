"""`crm-replay check`: every account's copy looked at each night, as deeply as a night allows; its exit code is a gate.

    model  pure: results by account, as text, JSON and JUnit; which ids a night's sample takes
    run    I/O: one function a question

It proves a sample where `verify` proves all: each night takes other segments, so that in time every row has its turn.
Reads only.
"""

from ops.checks.nightly.model import Results
from ops.checks.nightly.run import CheckOptions, check_accounts

__all__ = ["CheckOptions", "Results", "check_accounts"]
