"""Roll backs over HTTP: each continues to its end, whether the client waits for it or not.

An account with ten million documents takes a quarter of an hour, longer than most gateways wait. So the request is
synchronous for a client that can wait, and a repeated request joins it: while an account is being rolled back, every
further request waits for the same roll back and gets its answer. When it has ended and its number was sent, the next
one finds nothing left and answers 0; where every client had disconnected by then, or this server died, the next request
gets the number. If this server stops or dies half-way, the rest stays marked, and the next request removes it and
answers for the whole.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ops.control.backend import Backend, answer_to, unavailable
from ops.control.envelope import ApiError
from ops.jobs import requests
from schemas.errors import ReplayError


class StoppingError(ReplayError):
    """This server is about to end."""


class Rollbacks:
    """The roll backs of this process, one an account at most."""

    def __init__(self, backend: Backend) -> None:
        """`backend` has their threads."""
        self._backend = backend
        self._running: dict[str, asyncio.Task[int]] = {}

    async def roll_back(
        self,
        company_sso_id: str,
        *,
        by: str,
        gone: Callable[[], Awaitable[bool]],
        reason: str = "",
        request_id: str = "",
    ) -> int:
        """Return how many documents the account's roll back has removed; begins one, or joins the one that runs.

        `gone` returns whether the client has disconnected: then the number is kept for the next one. Raises ApiError.
        A client that goes away ends its own waiting only.
        """
        task = self._running.get(company_sso_id)
        if task is None:
            task = asyncio.create_task(self._do(company_sso_id, by, reason, request_id))
            self._running[company_sso_id] = task
            task.add_done_callback(lambda done: self._over(company_sso_id, done))
        removed = await asyncio.shield(task)
        if not await gone():
            with contextlib.suppress(ApiError):  # it would be sent twice: better than never
                await self._backend.read(self._backend.store.note_rollback_answered, company_sso_id)
        return removed

    async def _do(self, company_sso_id: str, by: str, reason: str, request_id: str) -> int:
        def on_batch(removed: int) -> None:
            if self._backend.stopping.is_set():
                raise StoppingError(
                    f"{removed:,} documents were removed so far, then the server stopped", "repeat the request"
                )

        try:
            return await self._backend.rollbacks.call(
                requests.rollback,
                self._backend.control,
                company_sso_id,
                by=by,
                on_batch=on_batch,
                reason=reason,
                request_id=request_id,
                to_be_answered=True,
            )
        except StoppingError as error:
            raise unavailable(error.what) from error
        except ApiError:
            raise
        except Exception as error:
            answer = answer_to(error)
            if answer is None:
                raise ApiError(
                    500, "ROLLBACK_FAILED", "the roll back was interrupted; repeat the request, it continues"
                ) from error
            raise answer from error

    def _over(self, company_sso_id: str, task: "asyncio.Task[int]") -> None:
        del self._running[company_sso_id]
        if not task.cancelled():
            task.exception()  # waiting clients get it; without any, it is in the audit log
