"""A worker as a process of its own, with a transformation that keeps the audit id: `python -m tests....worker`.

Before each ack it appends `partition begin end records` to HANDLED_FILE; SLOW_S makes each batch take longer.
"""

import asyncio
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from processors.app import Parts, Surroundings
from processors.batches import BatchTransformer, Transform
from processors.batching import Batch
from processors.encoding import documents
from processors.encoding.transform import Transformed
from processors.lookups.answers import TableLookups
from processors.replay import replay_parts
from processors.rules.decide import Refused, Skip
from processors.settings import ProcessorSettings, connections
from processors.worker import run_worker
from schemas.errors import ReplayError
from schemas.records import AuditEvent
from schemas.vocabulary import SkipReason


def transform_with(lookups: TableLookups) -> Transform:
    def transform(event: AuditEvent) -> Transformed | Skip | Refused:
        if event.auditable_type == "Defect":
            raise KeyError("a rule's defect")
        if event.user_id and lookups.contact(str(event.user_id)) is None:
            return Skip(SkipReason.CONTACT_NOT_FOUND)
        return Transformed({"audit_id": event.audit_id, "text": event.audited_changes})

    return transform


def parts(around: Surroundings) -> Parts:
    made = replay_parts(around)
    transform = transform_with(TableLookups(around.app.tables))
    job, codec, metrics = around.settings.job, around.codec, around.metrics
    return replace(made, transformer=BatchTransformer(job, codec, transform, documents.encode, metrics), counts=dict)


def note_handled(path: str, slow_s: float) -> Any:
    log = Path(path).open("a", encoding="ascii", buffering=1)  # noqa: SIM115 - as long as the process

    def note(batch: Batch) -> None:
        if slow_s:
            time.sleep(slow_s)
        line = f"{batch.partition} {batch.begin} {batch.end} {len(batch.records)}\n"
        log.write(line)  # line-buffered: survives SIGKILL

    return note


async def main() -> None:
    settings = ProcessorSettings.load()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    path = os.environ.get("HANDLED_FILE")
    before_ack = note_handled(path, float(os.environ.get("SLOW_S", "0"))) if path else None
    await run_worker(settings, connections(), parts, before_ack)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ReplayError as error:
        sys.stderr.write(f"worker: {error}\n")
        sys.exit(error.exit_code)
