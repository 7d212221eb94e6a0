"""Pure: the expected outcome of a source row, by the code of the producer and the processors."""

from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.rules.decide import Skip
from schemas.errors import UnreadableTopicError
from schemas.records import AuditEvent
from schemas.vocabulary import DeadLetterCause, SkipReason

Expected = bytes | SkipReason | DeadLetterCause


def expected_of(event: AuditEvent, rows: RowEncoder) -> Expected:
    """Return the row's document (BSON without `_id`), or why it has none. Nothing in a row can make this raise.

    Raises UnreadableTopicError for a reference that cannot be read.
    """
    try:
        result = rows.document(event)
    except UnreadableTopicError:
        raise  # of a reference table: it is not about the row
    except Exception:  # the processors dead-letter a defect of a rule, and so must be expected here
        return DeadLetterCause.TRANSFORM_FAILED
    if isinstance(result, bytes):
        return DeadLetterCause.DOCUMENT_TOO_LARGE if documents.is_too_large(result) else result
    return result.reason if isinstance(result, Skip) else result.cause
