"""Rows of a new account: held until the account is published, for a bounded time."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

from processors.batches import SourceRecord
from processors.feed.change_events import Refused
from processors.feed.decoding import Decoded, FeedDecoder

log = logging.getLogger(__name__)

ACCOUNT_WAIT_S = 90.0  # for an account to be published: once a minute
ACCOUNT_AGAIN_S = 600.0
ACCOUNT_POLL_S = 0.25


class Patience:
    """Pure: how long to wait for values of the account column that are not published yet.

    One that stays unknown is waited for again after ACCOUNT_AGAIN_S; until then its rows are dead letters. Each failed
    wait halves the next one, so that together they delay a feed by at most 2 * ACCOUNT_WAIT_S in ACCOUNT_AGAIN_S.
    """

    def __init__(self) -> None:
        """Begin with no account given up."""
        self.wait_s = ACCOUNT_WAIT_S
        self._given_up: dict[str, float] = {}  # when each was given up

    def worth_waiting_for(self, unknown: Collection[str], now_s: float) -> set[str]:
        """Return those of the unknown values that have not been given up recently."""
        self._given_up = {value: at for value, at in self._given_up.items() if now_s - at < ACCOUNT_AGAIN_S}
        if not self._given_up:
            self.wait_s = ACCOUNT_WAIT_S
        return set(unknown) - self._given_up.keys()

    def give_up(self, unknown: Collection[str], now_s: float) -> None:
        """Note what is still unknown after a wait."""
        if unknown:
            self.wait_s /= 2
        self._given_up.update(dict.fromkeys(unknown, now_s))


class UnknownAccounts:
    """Waits for accounts that rows name and that are not published yet."""

    def __init__(self, decoder: FeedDecoder, account_of: Callable[[str], str | None]) -> None:
        """`account_of` returns the account that a value of the account column stands for; None: not known yet."""
        self._decoder = decoder
        self._account_of = account_of
        self._patience = Patience()

    async def awaited(self, records: Sequence[SourceRecord], decoded: Sequence[Decoded]) -> Sequence[Decoded]:
        """Return what the records are, those of a new account decoded again once it is known."""
        began = time.monotonic()
        unknown = {what.account for what in decoded if isinstance(what, Refused) and what.account}
        unknown = self._patience.worth_waiting_for(unknown, began)
        if not unknown:
            return decoded
        log.info("%d accounts are not known yet; waiting for the next publication", len(unknown))
        while (left := [v for v in unknown if self._account_of(v) is None]) and (
            time.monotonic() - began < self._patience.wait_s
        ):
            await asyncio.sleep(ACCOUNT_POLL_S)
        self._patience.give_up(left, began)
        return [
            self._decoder.decode(record) if isinstance(what, Refused) and what.account else what
            for record, what in zip(records, decoded, strict=True)
        ]
