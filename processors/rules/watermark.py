"""Which side owns a row. Pure: for any event and any watermark, exactly one of replay and live feed takes it."""

from schemas.vocabulary import SkipReason


def skip_reason(created_at: int, contact_created_at: int, live: bool | None) -> SkipReason | None:
    """Return why this side leaves the row to the other one; None if it is its own.

    Times are microseconds since 1970 in UTC. The replay owns what was created before the contact was; the live feed
    owns the rest, the same instant included. `live=None` means both sides: no row is left out.
    """
    if created_at < contact_created_at:
        return SkipReason.PRE_SYNC_REPLAY if live else None
    return SkipReason.POST_SYNC_LIVE_FEED if live is False else None
