"""The loop: read, save, publish, flush, in this order; a comment at each step says what a crash there costs.

Pages are published in chunks, and the next chunk is read and encoded while the brokers confirm the last one. One save
between the two records that the last one is confirmed, and what the next one is about to publish; a crash repeats one
chunk at most.

Ids are not committed in the order in which they are assigned. So an id without a row, a gap, is recorded while a
transaction that was open when the job started may still fill it, and always among the newest ids. The gap is saved
before the rows around it are published: whatever is repeated later, a row that fills it is left out of its range and
found by the second read, under a number of its own. Otherwise a repeated page could contain a new row among ids that
were published before, and consumers would drop it as a repetition.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from producer.audits import Reader
from producer.checkpoint import Saves
from producer.cursor import IdRange, advance, all_gaps, announce, next_number, note_gaps
from producer.messages import Encoded, Encoder, Page
from producer.metrics import Counters
from producer.publisher import Publishes, now_us
from schemas.errors import ReplayError
from schemas.process.liveness import Liveness
from schemas.process.tracing import OFF, Traces, Work
from schemas.process.waiting import StoppedError

logger = logging.getLogger(__name__)

HORIZON_LOG_S = 10.0
# A chunk ends with the page that reaches one of these bounds, or the one in the settings.
CHUNK_BYTES = 8 * 1024 * 1024  # of keys and values: two chunks are in memory
CHUNK_S = 1.0  # of reading: rows of a slow source are not delayed longer


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a snapshot, fixed by job and settings."""

    top: int  # newest id when the job started
    xmax: int  # transactions below it, if they had an id when the job started, may still commit ids up to `top`
    horizon_wait_s: float
    checkpoint_rows: int  # a chunk ends with the page that reaches them
    horizon_poll_s: float = 0.5
    newest_ids: int = 10_000  # below the top: a transaction may have drawn one before it has an id of its own
    gaps_noted_max: int = 5_000  # all are in the checkpoint; beyond this, reading waits for the horizon


class Prepared(NamedTuple):
    """A page, read and encoded."""

    page: Page
    encoded: Encoded
    work: Work


class Snapshot:
    """Publishes id ranges to the replay topic."""

    def __init__(
        self,
        reader: Reader,
        encoder: Encoder,
        publisher: Publishes,
        checkpoint: Saves,
        bounds: Bounds,
        *,
        stop: Callable[[], bool] = lambda: False,
        counters: Counters | None = None,
        liveness: Liveness | None = None,
        pause: Callable[[int, float], None] = lambda rows, query_s: None,  # noqa: ARG005
        traces: Traces = OFF,
    ) -> None:
        """`stop` is polled between pages; `pause` gets a page's rows and seconds and throttles the reading."""
        self._reader = reader
        self._encoder = encoder
        self._publisher = publisher
        self._checkpoint = checkpoint
        self._bounds = bounds
        self._stop = stop
        self._pause = pause
        self._traces = traces
        self.counters = counters if counters is not None else Counters()
        self._liveness = liveness if liveness is not None else Liveness(float("inf"))
        self._horizon_passed = False
        self._horizon_read_at = float("-inf")
        self._last_read_s = 0.0  # of the last page
        self._last_rows = 0

    def read(self, range_: IdRange) -> IdRange:
        """Publish the rest of a range; return it, done. Raises StoppedError between chunks, on a stop request."""
        published: list[Prepared] = []  # not necessarily confirmed yet
        behind = range_  # the range once they are confirmed
        while not range_.done:
            pages: list[Prepared] = []
            ahead = behind
            if not (behind.done or self._too_many_gaps(behind)):
                pages, ahead = self._read_chunk(behind, pause_first=bool(published))
            if published:
                with _step(published, "confirm"):
                    self._publisher.flush()  # raises if any delivery failed; the cursor stays
            range_ = announce(behind, ahead)
            with _step(published, "save cursor"):
                # A crash before this line publishes the last chunk again, under the same number. The save comes between
                # reading and publishing of the next chunk: if another runner has taken over, and recorded a gap where a
                # row was read here, it raises, and the other runner publishes the row.
                self._checkpoint.save(range_)
            for page, encoded, work in published:
                work.end(**_of_page(page, encoded))
                self.counters.count(page, encoded)
            self.counters.saved(range_.id_range, range_.cursor)
            self._liveness.ready = True
            self._liveness.progressed()
            if self._stop() and not range_.done:
                raise StoppedError
            if not (pages or range_.done):
                self.wait_for_horizon()  # nothing is in flight, and there are too many gaps to continue
            for _, encoded, work in pages:
                with work.step("publish"):
                    self._publisher.publish(encoded.records, work.headers)
            published, behind = pages, ahead
        return range_

    def _read_chunk(self, range_: IdRange, *, pause_first: bool) -> tuple[list[Prepared], IdRange]:
        """Return the next pages, encoded, and the range after them, with their gaps.

        Pauses between two pages; with `pause_first` before the first one, too.
        """
        chunk: list[Prepared] = []
        rows = size = 0
        began = time.monotonic()
        while True:
            if chunk or pause_first:
                self._pause(self._last_rows, self._last_read_s)
            prepared = self._prepare(range_)
            page, records = prepared.page, prepared.encoded.records
            range_ = advance(note_gaps(range_, page.gaps, page.end), page.end, len(records))
            chunk.append(prepared)
            self._last_rows = len(records)
            rows += len(records)
            size += prepared.encoded.bytes
            if rows >= self._bounds.checkpoint_rows or size >= CHUNK_BYTES or time.monotonic() - began >= CHUNK_S:
                break
            if range_.done or self._too_many_gaps(range_) or self._stop():
                break
        return chunk, range_

    def read_late_rows(self, ranges: Sequence[IdRange]) -> IdRange | None:
        """Read the gaps of all ranges again once no transaction can fill them; return the late range, done.

        None if there are no gaps. Raises ReplayError if transactions older than the job stay open for longer than the
        bound, StoppedError on a stop request.
        """
        gaps = all_gaps(range_ for range_ in ranges if not range_.late)
        if not gaps:
            return None
        self.wait_for_horizon()
        late = next((range_ for range_ in ranges if range_.late), None)
        if late is None:
            before = gaps[0][0] - 1
            late = IdRange(next_number(ranges), first=before, cursor=before, last=gaps[-1][1], late=True)
            self._checkpoint.save(late)
        while not late.done:
            if self._stop():
                raise StoppedError
            work = self._traces.begin("late page", **{"crm_replay.id_range": late.id_range})
            with work.step("read"):
                page = self._reader.late_page_after(late.cursor, gaps, late.id_range)
            with work.step("encode"):
                encoded = self._encoder.encode(page, now_us())
            with work.step("publish and confirm"):
                self._publisher.publish(encoded.records, work.headers)
                self._publisher.flush()
            late = advance(late, page.end, len(encoded.records))
            with work.step("save cursor"):
                self._checkpoint.save(late)
            work.end(**_of_page(page, encoded))
            self.counters.count(page, encoded, late=True)
            self.counters.saved(late.id_range, late.cursor)
            self._liveness.progressed()
        return late

    def wait_for_horizon(self) -> None:
        """Return once every transaction that was open when the job started has ended.

        Raises ReplayError when that takes longer than the bound, StoppedError on a stop request.
        """
        started = logged = time.monotonic()
        while not self._read_horizon():
            now = time.monotonic()
            if self._stop():
                raise StoppedError
            if now - started >= self._bounds.horizon_wait_s:
                holders = self._reader.oldest_transactions()
                raise ReplayError(
                    f"transactions that were open when the job started are still open: {holders}",
                    "end them, or raise CRM_REPLAY_HORIZON_WAIT_S, and start again; the cursor is kept",
                )
            if now - logged >= HORIZON_LOG_S or logged == started:
                logged = now
                logger.info("waiting for transactions older than the job: %s", self._reader.oldest_transactions())
            time.sleep(self._bounds.horizon_poll_s)

    def _prepare(self, range_: IdRange) -> Prepared:
        """Return the next page, encoded."""
        if not self._horizon_passed and time.monotonic() - self._horizon_read_at >= self._bounds.horizon_poll_s:
            self._read_horizon()
        newest_from = self._bounds.top - self._bounds.newest_ids
        in_newest = range_.cursor >= newest_from
        work = self._traces.begin("page", **{"crm_replay.id_range": range_.id_range})
        began = time.monotonic()
        with work.step("read"):
            page = self._reader.page_after(
                range_.cursor,
                range_.last if in_newest else min(range_.last, newest_from),
                range_.id_range,
                range_.gaps if range_.gaps_to > range_.cursor else (),
                look_for_gaps=in_newest or not self._horizon_passed,
            )
        self._last_read_s = time.monotonic() - began
        self.counters.read_s += self._last_read_s
        self.counters.rows_read += len(page.events)
        with work.step("encode"):
            encoded = self._encoder.encode(page, now_us())
        return Prepared(page, encoded, work)

    def _too_many_gaps(self, range_: IdRange) -> bool:
        return len(range_.gaps) >= self._bounds.gaps_noted_max and not self._horizon_passed

    def _read_horizon(self) -> bool:
        if not self._horizon_passed:
            self._horizon_passed = self._reader.horizon_passed(self._bounds.xmax)
            self._horizon_read_at = time.monotonic()
        return self._horizon_passed


def _step(pages: Iterable[Prepared], name: str) -> ExitStack:
    """Return a context that is a step of each page's span."""
    steps = ExitStack()
    for _, _, work in pages:
        steps.enter_context(work.step(name))
    return steps


def _of_page(page: Page, encoded: Encoded) -> dict[str, int]:
    """Return the attributes of a page's span: its end in the source, and its numbers of records."""
    return {
        "crm_replay.page_end": page.end,
        "crm_replay.rows": len(encoded.records),
        "crm_replay.dead_letters": encoded.dead_letters,
    }
