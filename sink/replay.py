"""A replay's sink: `_id`s from run and audit id, counts by partition, a job that ends and can be halted."""

from schemas.collections import JOBS, PROGRESS
from schemas.process.topic_watch import RUN_AGAIN
from sink.accounting import Accounting, ByPartition
from sink.consumer import Parts, Surroundings
from sink.decoding import Decoder
from sink.halting import ReplayGate
from sink.identity import shift_of
from sink.progress import Progress


def replay_parts(around: Surroundings) -> Parts:
    """Return the parts of a replay's sink."""
    job = around.settings.job
    progress = Progress(around.database[PROGRESS], job.job_id, job.run)
    rules = ByPartition(shift_of(job.top_audit_id))
    return Parts(
        Decoder(job, around.codec, around.document_bytes_max),
        Accounting(progress, rules, around.waiting, around.metrics, around.hook),
        ReplayGate(around.database[JOBS], job, progress, around.waiting),
        RUN_AGAIN,
    )
