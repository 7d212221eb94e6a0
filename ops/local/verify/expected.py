"""Pure: what a source row has to end as, by the very code of the producer and the processors."""

from processors import documents
from processors.transform import Lookups, Refused, Skip, Transformer
from schemas.records import AuditEvent
from schemas.vocabulary import DeadLetterCause, SkipReason

Expected = bytes | SkipReason | DeadLetterCause


def expected_of(event: AuditEvent, transformer: Transformer, lookups: Lookups) -> Expected:
    """Return the row's document (BSON without `_id`), or why it has none. Nothing in a row can make this raise."""
    try:
        result = transformer.transform(event, lookups)
        if type(result) is Skip:
            return result.reason
        if type(result) is Refused:
            return result.cause
        document = documents.encode(result.document)  # type: ignore[union-attr]
    except Exception:  # the processors dead-letter a defect of a rule, and so must be expected here
        return DeadLetterCause.TRANSFORM_FAILED
    return DeadLetterCause.DOCUMENT_TOO_LARGE if documents.is_too_large(document) else document
