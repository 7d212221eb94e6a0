"""A sink's counters since its start. The job's exact counts are in its progress documents."""

import logging
import time
from dataclasses import asdict, dataclass, field

from schemas.process.metrics import Value, labelled
from sink.decoding import Batch
from sink.documents import BatchOutcome

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0


@dataclass
class SinkMetrics:
    """The counters of one process."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    write_seconds: float = 0.0
    inserted: int = 0
    redelivered: int = 0  # written by this run before
    duplicates: int = 0  # written by another writer
    failed: int = 0
    dead_letters: int = 0
    repeated: int = 0  # counted before
    repeats_inserted: int = 0  # counted before, yet new to the collection: two outcomes of one row differ
    other_runs: int = 0  # of another run, ignored
    undecodable: int = 0
    lost_races: int = 0  # progress that another sink had saved meanwhile
    retries: int = 0  # of effects without an answer
    rebalances: int = 0
    _logged_at: float = field(default_factory=time.monotonic, repr=False)

    def add_batch(self, batch: Batch, outcome: BatchOutcome, write_seconds: float) -> None:
        """Add a batch that the server has answered."""
        self.batches += 1
        self.records += batch.records
        self.bytes += batch.bytes
        self.other_runs += batch.other_runs
        self.undecodable += batch.undecodable
        self.write_seconds += write_seconds
        self.inserted += len(outcome.inserted)
        self.redelivered += len(outcome.redelivered)
        self.duplicates += len(outcome.duplicates)
        self.failed += len(outcome.failed)

    def counters(self) -> dict[str, int | float]:
        """Return every counter by name."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def values(self) -> list[Value]:
        """Return all counters under their metric names."""
        sent = {
            "inserted": self.inserted,
            "redelivered": self.redelivered,
            "duplicate": self.duplicates,
            "failed": self.failed,
        }
        return [
            Value("batches_written_total", self.batches),
            Value("records_consumed_total", self.records),
            Value("bytes_consumed_total", self.bytes),
            Value("write_seconds_total", self.write_seconds),
            *labelled("documents_total", "outcome", sent),
            Value("dead_letters_total", self.dead_letters),
            Value("records_repeated_total", self.repeated),
            Value("records_undecodable_total", self.undecodable),
            Value("progress_races_total", self.lost_races),
            Value("retries_total", self.retries),
            Value("rebalances_total", self.rebalances),
        ]

    def log_if_due(self) -> None:
        """Log them every 30 seconds."""
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self.log()

    def log(self) -> None:
        """Log them now."""
        self._logged_at = time.monotonic()
        counters = self.counters()
        counters["write_seconds"] = round(self.write_seconds, 3)
        log.info("sink %s", " ".join(f"{name}={value}" for name, value in counters.items() if value))
