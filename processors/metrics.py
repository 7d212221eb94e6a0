"""What a worker counts. Plain numbers, added to by one thread; read and logged as one line."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from schemas.process.metrics import Value, labelled

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProcessorMetrics:
    """Counts since the worker started; `records_in` = logs, skips, dead letters, markers, republished, beyond_end."""

    records_in: int = 0
    logs: int = 0
    skips: Counter[str] = field(default_factory=Counter)  # by SkipReason
    dead_letters: Counter[str] = field(default_factory=Counter)  # by DeadLetterCause
    rows_by_plain_way: int = 0  # whose form the fast way does not handle; all of a live feed
    markers: int = 0  # ignored or forwarded
    republished: int = 0  # rows that the snapshot published a second time
    beyond_end: int = 0  # behind this run's end marker: of another run
    batches: int = 0
    first_batch_at: float = 0.0  # time.perf_counter() at the first batch; 0: none yet
    last_ack_at: float = 0.0  # and when the last one was acknowledged
    rebalances: int = 0
    transform_s: float = 0.0  # decoding, rules, encoding, and queueing for the producer
    deliver_s: float = 0.0  # waiting for Kafka to confirm earlier batches
    table_load_s: float = 0.0
    table_entries: dict[str, int] = field(default_factory=dict)
    table_rejects: int = 0  # entries of a wrong account, or undecodable
    transformation: dict[str, int] = field(default_factory=dict)  # what the rules count in addition to the outcomes

    def running_s(self) -> float:
        """Return the seconds from the first batch to the last ack: without the start, with every pause."""
        return max(self.last_ack_at - self.first_batch_at, 0.0)

    def line(self) -> str:
        """Return everything as `name=value` pairs on one line."""
        pairs: dict[str, object] = {
            "records_in": self.records_in,
            "logs": self.logs,
            "skips": self.skips.total(),
            **{f"skip.{reason}": count for reason, count in sorted(self.skips.items())},
            "dead_letters": self.dead_letters.total(),
            **{f"dead_letter.{cause}": count for cause, count in sorted(self.dead_letters.items())},
            "rows_by_plain_way": self.rows_by_plain_way,
            "markers": self.markers,
            "republished": self.republished,
            "beyond_end": self.beyond_end,
            "runs": self.batches,
            "running_s": f"{self.running_s():.2f}",
            "records_per_s": f"{self.records_in / self.running_s():.0f}" if self.running_s() else "0",
            "rebalances": self.rebalances,
            "transform_s": f"{self.transform_s:.2f}",
            "deliver_s": f"{self.deliver_s:.2f}",
            "table_load_s": f"{self.table_load_s:.2f}",
            **{f"table.{name}": size for name, size in sorted(self.table_entries.items())},
            "table_rejects": self.table_rejects,
            **self.transformation,
        }
        return " ".join(f"{name}={value}" for name, value in pairs.items())

    def values(self) -> list[Value]:
        """Return everything under its public name."""
        return [
            Value("records_processed_total", self.records_in),
            Value("outcomes_total", self.logs, {"outcome": "log", "reason": ""}),
            *(Value("outcomes_total", n, {"outcome": "skip", "reason": why}) for why, n in list(self.skips.items())),
            *(
                Value("outcomes_total", n, {"outcome": "dead_letter", "reason": why})
                for why, n in list(self.dead_letters.items())
            ),
            Value("rows_by_plain_way_total", self.rows_by_plain_way),
            Value("records_republished_total", self.republished),
            Value("runs_total", self.batches),
            Value("transform_seconds_total", self.transform_s),
            Value("delivery_wait_seconds_total", self.deliver_s),
            Value("rebalances_total", self.rebalances),
            *labelled("rules_total", "what", {k: n for k, n in self.transformation.items() if "." not in k}),
            *labelled("actors_fell_back_total", "case", self._of("actors.")),
            *labelled("directory_total", "what", self._of("directory.")),
            *labelled("live_contacts_total", "what", self._of("contacts.")),
            *labelled("changes_refused_total", "reason", self._of("changes.")),
            *labelled("table_entries", "table", dict(self.table_entries)),
            Value("table_load_seconds", self.table_load_s),
            Value("table_rejects_total", self.table_rejects),
        ]

    def _of(self, prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): n for name, n in self.transformation.items() if name.startswith(prefix)}

    def report(self) -> None:
        """Log the line."""
        log.info("metrics %s", self.line())
