"""Pure: the outcomes of a feed -> documents whose `_id` identifies the feed's record that wrote them."""

from collections.abc import Iterable

from schemas.codec import Codec
from schemas.errors import UndecodableRecordError
from schemas.identity import ID_BYTES, OBJECT_ID_FIELD, SOURCE_OFFSET_MAX, feed_id
from schemas.job import LiveFeed
from schemas.records import ActivityLog
from sink.decoding import Batch, Decoder
from sink.documents import BSON_LENGTH_BYTES, is_whole
from sink.records import Bin, Decided, Source, Taken

ACCOUNT_FIRST = b"\x02company_sso_id\x00"  # BSON: a text of this name


def with_id(run: int, partition: int, offset: int, document: bytes) -> bytes:
    """Return the BSON document with its `_id` first."""
    length = (len(document) + ID_BYTES).to_bytes(BSON_LENGTH_BYTES, "little")
    return length + OBJECT_ID_FIELD + feed_id(run, partition, offset) + document[BSON_LENGTH_BYTES:]


def account_in(document: bytes) -> str:
    """Return the account of a BSON document that begins with it, as the processors write it; else ""."""
    start = BSON_LENGTH_BYTES + len(ACCOUNT_FIRST)
    if document[BSON_LENGTH_BYTES:start] != ACCOUNT_FIRST:
        return ""
    size = int.from_bytes(document[start : start + BSON_LENGTH_BYTES], "little")
    text = document[start + BSON_LENGTH_BYTES : start + BSON_LENGTH_BYTES + size - 1]
    return text.decode("utf-8", "replace")


class LiveDecoder(Decoder):
    """Decodes the outcomes of a feed."""

    def __init__(self, feed: LiveFeed, codec: Codec, document_bytes_max: int) -> None:
        """`document_bytes_max` is the server's limit of a document with its `_id`."""
        super().__init__(feed, codec, document_bytes_max)
        self._accounts: dict[tuple[int, int], str] = {}  # of records in flight, by partition and offset

    def take_account(self, partition: int, offset: int) -> str:
        """Return and forget the account that was the key of a batch's record."""
        return self._accounts.pop((partition, offset), "")

    def batch(self, messages: Iterable[Taken], now_us: int) -> Batch:
        """Return the messages as a batch. Raises like `Decoder.batch`."""
        batch = Batch()
        for taken in messages:
            batch.records += 1
            batch.bytes += len(taken.value)
            self._accounts[taken.partition, taken.offset] = taken.key.decode("utf-8", "replace")
            records = batch.decided.setdefault(taken.partition, [])
            try:
                record = self._codec.decode(taken.value)
            except UndecodableRecordError as error:
                self._refuse_what_is_ours(taken, error)
                batch.undecodable += 1
                records.append(self._undecodable(taken, error.what, now_us))
                continue
            if type(record) is ActivityLog and record.run == self._run and self._has(record.audit_id):
                records.append(self._log(record, taken, batch, len(records), now_us))
            else:
                records.append(self._other(record, taken, batch, now_us))
        return batch

    def _log(self, record: ActivityLog, taken: Taken, batch: Batch, position: int, now_us: int) -> Decided:
        """Return a log's bin; add its document if it is valid: complete, of its account, not too large."""
        document = record.document
        account = taken.key.decode("utf-8", "replace")
        if (
            not is_whole(document)
            or len(document) + ID_BYTES > self._document_bytes_max
            or not account
            or account_in(document) != account
            or not 0 <= record.source_offset <= SOURCE_OFFSET_MAX
        ):
            return self._unfit(record, taken, now_us)
        batch.sources.append(Source(position, record, taken))
        batch.documents.append(with_id(self._run, taken.partition, record.source_offset, document))
        return Decided(taken.offset, record.source_offset, record.audit_id, record.id_range, Bin.MIGRATED)
