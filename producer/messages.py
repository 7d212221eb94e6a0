"""Pure: a page of rows -> the keyed records that are published for it, one per row, in order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from producer.core import records_of
from producer.cursor import Gap
from schemas.codec import Codec
from schemas.records import AuditEvent, DeadLetter
from schemas.vocabulary import DeadLetterCause

KeyOf = Callable[[AuditEvent], str]

KEPT_CHARS_MAX = 16 * 1024
TEXT_FIELDS = (
    "auditable_type",
    "associated_type",
    "user_type",
    "username",
    "action",
    "audited_changes",
    "comment",
    "request_uuid",
)


@dataclass(frozen=True, slots=True)
class Defect:
    """Why a row cannot be published as an audit event."""

    cause: DeadLetterCause
    detail: str


@dataclass(frozen=True, slots=True)
class Page:
    """The rows in (cursor, end] of one id range."""

    events: tuple[AuditEvent, ...]
    end: int  # scanned up to here
    gaps: tuple[Gap, ...] = ()  # ids without a row, if the page was searched for them
    defects: Mapping[int, Defect] = field(default_factory=dict)  # by audit id: why an event is not the complete row

    @property
    def sound(self) -> tuple[AuditEvent, ...]:
        """The events that are complete rows; the others are dead letters."""
        if not self.defects:
            return self.events
        return tuple(event for event in self.events if event.audit_id not in self.defects)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A page's records, keys and values, one per row."""

    records: list[tuple[bytes, bytes]]
    dead_letters: int  # how many of them
    bytes: int  # of all keys and values


class Encoder:
    """Encodes rows as records."""

    def __init__(self, codec: Codec, key_of: KeyOf, topic: str, run: int, record_bytes_max: int) -> None:
        """`record_bytes_max` is the topic's limit for key and value together."""
        self._codec = codec
        self._encode = codec.encoder(AuditEvent)
        self._key_of = key_of
        self._topic = topic
        self._run = run
        self._record_bytes_max = record_bytes_max

    def encode(self, page: Page, now_us: int) -> Encoded:
        """Return key and value of each of the page's rows, in id order.

        A row that is not a complete audit event is replaced by a dead letter, so that it is counted as failed and
        neither stops the snapshot nor gets lost.
        """
        records, too_large, size = records_of(page.events, self._key_of, self._encode, self._record_bytes_max)
        defects = {place: self._too_large(records[place][1]) for place in too_large}
        if page.defects:
            of_rows = enumerate(page.events)
            defects = {n: page.defects[e.audit_id] for n, e in of_rows if e.audit_id in page.defects} | defects
        for place, defect in defects.items():
            key, value = records[place]
            letter = self._dead_letter(page.events[place], key, defect, now_us)
            records[place] = key, letter
            size += len(letter) - len(value)
        return Encoded(records, len(defects), size)

    def _too_large(self, value: bytes) -> Defect:
        detail = f"the record has {len(value)} bytes; the replay topic takes {self._record_bytes_max}"
        return Defect(DeadLetterCause.ROW_TOO_LARGE, detail)

    def _dead_letter(self, event: AuditEvent, key: bytes, defect: Defect, now_us: int) -> bytes:
        """Return the dead letter of a row; its payload is the audit event, truncated to fit."""
        kept = min(KEPT_CHARS_MAX, self._record_bytes_max // (8 * len(TEXT_FIELDS)))
        payload = self._codec.encode(event._replace(**{name: getattr(event, name)[:kept] for name in TEXT_FIELDS}))
        return self._codec.encode(
            DeadLetter(
                audit_id=event.audit_id,
                id_range=event.id_range,
                source_topic=self._topic,
                source_partition=-1,  # the topic's consumer knows both
                source_offset=-1,
                run=self._run,
                cause=defect.cause,
                detail=defect.detail,
                key=key,
                payload=payload,
                failed_at=now_us,
            )
        )
