"""`crm-replay check`: every account's copy looked at each night, as deeply as a night allows; its exit code is a gate.

    model     pure: results by account, as text, JSON and JUnit; which ids a night's sample takes
    run       I/O: one function a question
    command   the command line

It proves a sample where `verify` proves all: each night takes other segments, so that in time every row has its turn.
Reads only.
"""

from ops.local.check.command import check
from ops.local.check.model import Results
from ops.local.check.run import CheckOptions, check_accounts

__all__ = ["CheckOptions", "Results", "check", "check_accounts"]
