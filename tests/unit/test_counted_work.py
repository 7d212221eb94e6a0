"""What a record costs, counted and not timed: a slow-down shows on the noisiest machine, and the same way each time.

Counted are the bytecode instructions that run and the calls into C, for a row on its way through each step, over six
hundred generated rows, with caches as warm as they are in a run: what the transformation remembers comes from other
rows, because most of a history's names, numbers and times are new. Where a limit is exceeded, either take the work out
again, or measure what it costs (`crm-replay bench`), and raise the limit in the same commit.
"""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import pytest

from ops.local.generator.history import History, Plan
from ops.local.generator.plain import PlainHistory
from processors.batches import BatchTransformer
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from producer.core import RecordKeys
from producer.messages import Encoder, Page
from schemas.codec import Codec
from schemas.compiled import COMPILED, hot_paths
from schemas.records import ActivityLog, AuditEvent
from schemas.source import mapping
from sink.counting import PartitionProgress, advance
from sink.decoding import Decoder
from sink.documents import BatchOutcome
from sink.records import Taken
from tests.support.factories import Consumed, replay_job
from tests.support.generator import audits
from tests.support.lookups import Anyone

pytestmark = [
    pytest.mark.hot_paths,
    pytest.mark.skipif(hot_paths() == COMPILED, reason="compiled code has no instructions to count"),
]

ROWS = 600
ROWS_BEFORE = 3_000
RULES = mapping.load(None)
CODEC = Codec()
JOB = replay_job(company_sso_id="A", run=3, partitions=1, top_audit_id=2**40)


class Work(NamedTuple):
    """What a row costs, on average."""

    instructions: int
    calls: int  # into C


# Measured with CPython 3.11 and rounded up by some 3 %. Another version has other instructions and other limits. What
# is compiled is counted interpreted; the numbers of mypy_extensions are calls then.
LIMITS = {
    ("peer", "producer"): Work(1510, 90),
    ("peer", "processor"): Work(4120, 139),
    ("peer", "core"): Work(9760, 264),
    ("peer", "sink"): Work(763, 27),
    ("crm", "producer"): Work(1550, 91),
    ("crm", "processor"): Work(4010, 134),
    ("crm", "core"): Work(7500, 241),
    ("crm", "sink"): Work(766, 27),
}


def counted(step: Callable[[], object], rows: int) -> Work:
    """Return what `step` costs for each of `rows`."""
    instructions = calls = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions += event == "opcode"
        return trace

    def profile(_frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "c_call"

    traced, profiled = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(traced)
        sys.setprofile(profiled)
    return Work(round(instructions / rows), round(calls / rows))


class Steps:
    """The same rows at every step of their way, all of them at once."""

    def __init__(self, rows: Sequence[AuditEvent], rows_before: Sequence[AuditEvent]) -> None:
        self._page = Page(tuple(rows), rows[-1].audit_id)
        self._encoder = Encoder(CODEC, RecordKeys(RULES.person).key, "topic", 3, 10**6)
        self._records = self._published(self._page)
        self._plain, self._core = _transformer(fast=False), _transformer(fast=True)
        for transformer in (self._plain, self._core):
            self._outcomes(transformer, self._published(Page(tuple(rows_before), rows_before[-1].audit_id)))
        outcomes = self._outcomes(_transformer(fast=False), self._records)
        self._taken = [Taken(0, offset, key, value) for offset, (key, value) in enumerate(outcomes)]
        self._decoder = Decoder(JOB, CODEC, 16 * 1024 * 1024)

    def producer(self) -> None:
        """From a page of rows to records."""
        self._encoder.encode(self._page, 0)

    def processor(self) -> None:
        """From records to outcomes, in the plain way."""
        self._outcomes(self._plain, self._records)

    def core(self) -> None:
        """The same by the core, from its sources: what is counted is what is compiled elsewhere."""
        self._outcomes(self._core, self._records)

    def sink(self) -> None:
        """From outcomes to documents with an `_id`, and to counts."""
        batch = self._decoder.batch(self._taken, 0)
        outcome = BatchOutcome(inserted=frozenset(range(len(batch.documents))))
        (decided,) = self._decoder.decide(batch, outcome, 0).values()
        assert advance(PartitionProgress(), decided).progress.migrated > 0.8 * ROWS

    def _published(self, page: Page) -> list[Consumed]:
        records = self._encoder.encode(page, 0).records
        return [Consumed(key, value, offset) for offset, (key, value) in enumerate(records)]

    @staticmethod
    def _outcomes(transformer: BatchTransformer, records: Sequence[Consumed]) -> list[tuple[bytes, bytes]]:
        return transformer.outcomes(records, transformer.decode(records), 0, HighWater(3))


def _transformer(*, fast: bool) -> BatchTransformer:
    transformer, lookups = Transformer(RULES, "A"), Anyone()
    rows = RowEncoder(transformer, lookups, CODEC, JOB.run, fast=fast)
    return BatchTransformer(JOB, CODEC, rows.plain, documents.encode, ProcessorMetrics(), rows)


@pytest.fixture(scope="module")
def steps() -> dict[str, Steps]:
    histories = {"peer": PlainHistory, "crm": History}
    found = {}
    for shape, history in histories.items():
        rows = [
            row.event._replace(company_sso_id="A") for row in audits(history(Plan(ROWS + ROWS_BEFORE, 1, 1, shape)))
        ]
        found[shape] = Steps(rows[-ROWS:], rows[:-ROWS])
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the limits are those of CPython 3.11's instructions")
@pytest.mark.parametrize(("shape", "step"), LIMITS)
def test_a_row_takes_no_more_work_than_it_did(steps: dict[str, Steps], shape: str, step: str) -> None:
    work, limit = counted(getattr(steps[shape], step), ROWS), LIMITS[shape, step]
    assert work.instructions <= limit.instructions, f"{step}, {shape} rows: {work}, allowed are {limit}"
    assert work.calls <= limit.calls, f"{step}, {shape} rows: {work}, allowed are {limit}"
    # Much less would hide the next slow-down: lower the limit, too.
    assert work.instructions >= 0.8 * limit.instructions, f"{step}, {shape} rows: {work}, allowed are {limit}"


def test_what_is_counted_is_the_work() -> None:
    once = counted(lambda: [len(str(n)) for n in range(100)], 1)
    twice = counted(lambda: [len(str(n)) for n in range(200)], 1)
    assert 1.8 < twice.instructions / once.instructions < 2.1
    assert twice.calls - once.calls == 100  # len; str is a type, and no call of C's


def test_the_processors_step_makes_documents(steps: dict[str, Steps]) -> None:
    made = [CODEC.decode(taken.value) for taken in steps["peer"]._taken]
    assert sum(isinstance(record, ActivityLog) for record in made) > 0.9 * ROWS
