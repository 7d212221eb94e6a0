"""From a batch of a feed's records to their outcomes: every record has one, except those about no row.

An outcome goes to the partition of its record, with the account as its key, so that the sink can count by account.
Pure but for the clock that dates dead letters.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from processors.batches import KEY_BYTES_MAX, OutcomeEncoder, SourceRecord, Transform, Undecodable
from processors.encoding import documents
from processors.encoding.transform import Transformed, Transformer
from processors.feed.change_events import Refused as ChangeRefused
from processors.feed.decoding import Decoded, FeedDecoder
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import Message
from processors.rules.decide import Lookups, Refused, Skip
from schemas.codec import Codec
from schemas.job import LiveFeed
from schemas.records import AuditEvent, DeadLetter, SkippedRecord
from schemas.topics import ACCOUNT_LENGTH_MAX
from schemas.vocabulary import DeadLetterCause

TRANSFORMERS_MAX = 10_000  # accounts whose rules are cached


class AccountRules:
    """The rules of every account seen, by one source mapping."""

    def __init__(self, rules: Transformer, lookups: Callable[[str], Lookups]) -> None:
        """`rules` are shared by all accounts; `lookups` gives an account's view."""
        self._rules = rules
        self._lookups = lookups
        self._of: dict[str, tuple[Transformer, Lookups]] = {}

    def transform(self, event: AuditEvent) -> Transformed | Skip | Refused:
        """Return what the row becomes by its account's rules."""
        account = event.company_sso_id
        known = self._of.get(account)
        if known is None:
            if len(self._of) >= TRANSFORMERS_MAX:
                self._of.clear()
            known = self._of[account] = (self._rules.for_account(account), self._lookups(account))
        return known[0].transform(event, known[1])


class FeedTransformer:
    """Turns batches of a feed into outcomes."""

    def __init__(
        self, feed: LiveFeed, codec: Codec, decoder: FeedDecoder, transform: Transform, metrics: ProcessorMetrics
    ) -> None:
        """`transform` handles rows of any account."""
        self._run = feed.run
        self._codec = codec
        self._decoder = decoder
        self._encoder = OutcomeEncoder(feed, codec, transform, documents.encode, metrics)
        self._metrics = metrics
        self.refused: Counter[str] = Counter()  # change events, by reason

    def decode(self, records: Sequence[SourceRecord]) -> list[Decoded]:
        """Return what each record is, in order."""
        return [self._decoder.decode(record) for record in records]

    def outcomes(
        self,
        records: Sequence[SourceRecord],
        decoded: Sequence[Decoded],
        partition: int,
        high: HighWater,  # noqa: ARG002
    ) -> list[Message]:
        """Return account and value of every outcome, in order."""
        metrics, encoder = self._metrics, self._encoder
        messages: list[Message] = []
        for record, what in zip(records, decoded, strict=True):
            account = ""
            if isinstance(what, AuditEvent):
                account = what.company_sso_id
                if not account or len(account) > ACCOUNT_LENGTH_MAX:
                    detail = "the row names no account"
                    value = encoder.dead_letter(record, what, partition, DeadLetterCause.WRONG_ACCOUNT, detail)
                    account = ""
                else:
                    value = encoder.of_row(record, what, partition)
            elif isinstance(what, Undecodable):
                value = encoder.dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, what.detail)
            elif isinstance(what, DeadLetter):
                value = encoder.passed_on(record, what, partition)
            elif isinstance(what, ChangeRefused):
                self.refused[what.reason] += 1
                if not what.reason.loses_a_row and what.audit_id > 0:
                    skipped = SkippedRecord(what.audit_id, 0, record.offset, self._run, str(what.reason))
                    value = self._codec.encode(skipped)
                else:
                    value = self._refused_change(record, what, partition)
            else:
                metrics.markers += 1
                continue
            messages.append((account.encode("utf-8", "replace")[:KEY_BYTES_MAX], value))
        metrics.records_in += len(records)
        return messages

    def _refused_change(self, record: SourceRecord, refused: ChangeRefused, partition: int) -> bytes:
        """Return the dead letter of a change event that may hold a row; its cause is why it was refused."""
        letter = self._encoder.dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, refused.detail)
        decoded = self._codec.decode_as(DeadLetter, letter)
        return self._codec.encode(decoded._replace(audit_id=refused.audit_id, cause=str(refused.reason)))
