"""The live feed's sink: the same poll, write, dead-letter, count, commit, for an unbounded topic of many accounts.

Differences from a replay's sink, and why:

- **`_id`** identifies the record of the feed that wrote a document (run, partition, source offset). So a redelivered
  record meets its own `_id`; a row that the source sends twice, or that the replay has written, meets the unique index.
- **Counts** are kept by account and partition, against the highest source offset counted: a feed's rows come in commit
  order, so their ids do not rise. An outcome's key is its account.
- **Nothing is halted.** A feed has no job to halt, and one account's poison records must not block the others: its dead
  letters are kept, counted, and reported by an alarm while they exceed a tenth of the account's records.
"""

import os
import time

from pydantic import Field, Json

from schemas.collections import PROGRESS
from schemas.job import LiveFeed
from sink.accounting import Accounting
from sink.consumer import Parts, Surroundings
from sink.feed.alarm import Alarm, FeedGate
from sink.feed.decoding import LiveDecoder
from sink.feed.progress import ByAccount, LiveProgress
from sink.settings import SinkSettings

LIVE = "CRM_REPLAY_LIVE"  # in the environment of a process: it belongs to a live feed


class LiveSinkSettings(SinkSettings):
    """The settings of a live feed's sink."""

    job: Json[LiveFeed] = Field(description="the feed as JSON")


def is_wanted() -> bool:
    """Return whether this process belongs to a live feed."""
    return bool(os.environ.get(LIVE))


def feed_parts(feed: LiveFeed, around: Surroundings) -> Parts:
    """Return the parts of a feed's sink."""
    decoder = LiveDecoder(feed, around.codec, around.document_bytes_max)
    gate = FeedGate(Alarm(time.monotonic()))
    progress = LiveProgress(around.database[PROGRESS], feed.feed, feed.run)
    return Parts(
        decoder,
        Accounting(progress, ByAccount(decoder), around.waiting, around.metrics, around.hook, on_saved=gate.note),
        gate,
        "crm-replay seam names the rows whose outcomes are lost",
    )
