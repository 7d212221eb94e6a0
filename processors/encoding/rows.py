"""The entry point to a row's bytes: the fast way where it handles the row, the plain way for every other.

`RowEncoder.outcome` is for workers, from a record's bytes to its outcome's; `document` is for checks, from an event to
its document. README.md says which way is the reference.
"""

from processors.encoding import documents
from processors.encoding.core import Core, Row
from processors.encoding.transform import Transformed, Transformer
from processors.rules.decide import Lookups, Refused, Skip
from schemas.codec import Codec
from schemas.compiled import COMPILED, hot_paths
from schemas.errors import UnreadableTopicError
from schemas.records import ActivityLog, AuditEvent, SkippedRecord
from schemas.vocabulary import SkipReason

# Interpreted, the core takes 1.4 times as long as the plain way: docs/performance.md has both measured.
IS_COMPILED = hot_paths() == COMPILED


class RowEncoder:
    """Makes the outcomes and documents of one account's replay; one per process."""

    def __init__(
        self, transformer: Transformer, lookups: Lookups, codec: Codec, run: int = 0, *, fast: bool = IS_COMPILED
    ) -> None:
        """`transformer` is of a replay; the differences of the live feed are not implemented here.

        `fast` is whether the core is tried first; the bytes are the same either way.
        """
        self._transformer = transformer
        self._lookups = lookups
        self._encode_event = codec.encoder(AuditEvent)
        frames = codec.frame(AuditEvent), codec.frame(ActivityLog), codec.frame(SkippedRecord)
        self._core = Core(transformer.rules, lookups, frames, run)
        self._is_fast = fast
        self.outcome = self._core.outcome

    def row(self, value: bytes) -> Row | None:
        """Return an event of the account for `outcome`; None if the plain way has to handle it."""
        return self._core.row(value) if self._is_fast else None

    @property
    def skip(self) -> str | None:
        """Why the last outcome is no log."""
        return self._core.skip

    def plain(self, event: AuditEvent) -> Transformed | Skip | Refused:
        """Return the plain way's result for an event."""
        return self._transformer.transform(event, self._lookups)

    def document(self, event: AuditEvent) -> bytes | Skip | Refused:
        """Return an event's document as BSON, or why there is none."""
        made = self._fast(event)
        if isinstance(made, bytes):
            return made
        if made is not None:
            return Skip(made)
        result = self.plain(event)
        return documents.encode(result.document) if isinstance(result, Transformed) else result

    def _fast(self, event: AuditEvent) -> bytes | SkipReason | None:
        try:
            row = self.row(self._encode_event(event))
            return self._core.document(row) if row is not None else None
        except UnreadableTopicError:
            raise  # of a reference table: not an error of the row
        except Exception:  # the plain way reports the error
            return None
