"""A replay's parts: one account's tables, rows deduplicated by the published high-water mark, a topic with an end."""

from collections.abc import Sequence
from functools import partial

from processors.app import Parts, Surroundings
from processors.batches import BatchTransformer, Decoded, SourceRecord, acting_users
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.answers import TableLookups, of_account
from processors.lookups.directory import UserDirectory
from processors.lookups.tables import HighWater
from processors.outcomes import OutcomeBatches
from processors.tables import declare
from schemas.process.topic_watch import RUN_AGAIN
from schemas.source import mapping

FETCH_BYTES_MIN = 256 * 1024  # of all partitions: a batch of any size costs the worker and the broker a millisecond


def replay_parts(around: Surroundings) -> Parts:
    """Return the parts of a replay's worker; declares the account's tables on the app."""
    app, job = around.app, around.settings.job
    declare(app, "contacts", job.topics.contacts, of_account(job.company_sso_id))  # with their watermarks
    declare(app, "users", job.topics.users)
    declare(app, "referents", job.topics.referents)

    url = around.connections.user_directory_url
    directory = UserDirectory(url, job.company_sso_id)
    lookups = TableLookups(app.tables, directory if url else None)
    rules = Transformer(mapping.load(job.mapping_path), job.company_sso_id)
    rows = RowEncoder(rules, lookups, around.codec, job.run)

    async def prepare(_: Sequence[SourceRecord], decoded: Sequence[Decoded]) -> Sequence[Decoded]:
        await lookups.prefetch_users(acting_users(decoded))
        return decoded

    def counts() -> dict[str, int]:
        of_directory = {f"directory.{name}": count for name, count in directory.counts.as_dict().items()}
        return {**rules.counts.as_dict(), **of_directory}

    return Parts(
        BatchTransformer(job, around.codec, rows.plain, documents.encode, around.metrics, rows),
        prepare,
        partial(HighWater, job.run),
        counts,
        directory.aclose,
        topic_replaced_to_do=RUN_AGAIN,
        batched=OutcomeBatches(around.codec),
        fetch_bytes_min=FETCH_BYTES_MIN,
    )
