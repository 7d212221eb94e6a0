"""Pure: MongoDB's error codes that are about the server and not about the document or the query. One list for all.

A replica set refuses a whole command while it is no primary's. A mongos answers for several shards: the error of one
that is away comes as a write error of each document that belongs there, beside those of the documents themselves. Both
are an outage: write again, commit nothing. A code that is not listed is the document's own, unknown ones too: a
document must not block all later ones, and too many failures halt a job.

Source: `error_codes.yml` of MongoDB 8.2 (its categories are the groups below), the drivers' specifications of retryable
writes and of server discovery, and what two hosted services add.
"""

from collections.abc import Mapping
from typing import Any

OUTAGE = frozenset(
    (
        # NetworkError, and a mongos's code for a shard that it cannot reach or select a node of
        6, 7, 71, 74, 83, 89, 133, 141, 145, 149, 172, 190, 199, 202, 230, 231, 317, 384, 407, 9001, 56846,
        # NotPrimaryError, and elections
        189, 216, 10058, 10107, 11602, 13435, 13436,
        # ShutdownError, CancellationError
        90, 91, 303, 310, 333, 372, 398, 11600,
        # Interruption, ExceededTimeLimitError, locks and conflicts that pass
        24, 46, 50, 107, 112, 117, 208, 215, 237, 262, 267, 279, 281, 282, 290, 355, 363, 365, 453, 11601, 12586, 12587,
        46841, 91331, 10045600,
        # StaleShardVersionError, SnapshotError: chunks move, collections are resharded, shards come and go
        63, 70, 82, 134, 150, 175, 203, 239, 246, 249, 250, 272, 319, 338, 342, 343, 406, 412, 414, 13388,
        # WriteConcernError
        64, 75, 79, 100,
        # SystemOverloadedError, no room, writes blocked
        39, 42, 264, 371, 402, 433, 449, 450, 462, 14031,
        # Atlas (AtlasError: a quota), Azure Cosmos DB (TooManyRequests)
        8000, 16500,
    )
)  # fmt: skip
NOT_LET_IN = frozenset((13, 18, 391))  # an operator's to repair, and no document's fault


def is_outage(error: BaseException) -> bool:
    """Return whether an exception has a `code` of a state that passes, though the server has answered."""
    return getattr(error, "code", None) in OUTAGE


def is_server_state(error: Mapping[str, Any] | BaseException) -> bool:
    """Return whether a write error of an answer, or an exception with a `code`, is not about what was sent."""
    code = error.get("code") if isinstance(error, Mapping) else getattr(error, "code", None)
    return code in OUTAGE or code in NOT_LET_IN
