"""The console's API. Basic authentication throughout; the audit log has the user's name.

Every POST and PUT takes JSON (`content-type: application/json`); one that a browser sends for another site's page is
refused by its `Origin` and `Sec-Fetch-Site`. Refusals are the error envelope
`{"status": "error", "resp_code", "message", "meta": {"request_id"}}`; validation errors are 400 `VALIDATION_ERROR` with
`meta.errors: [{field, message}]`. Models: console_models.py. Account ids travel in the query or the body, never in the
path: they may hold any printable character.

    GET  /console/api/session                                            -> Session
    GET  /console/api/accounts?search=&cursor=&limit=                    -> AccountList
    GET  /console/api/account?account=                                   -> AccountDetail (never 404: not_started)
    GET  /console/api/audit-log?account=&limit=                          -> AuditEntries
    GET  /console/api/dead-letters?account=&cause=&cursor=&limit=        -> LetterPage
    GET  /console/api/dead-letter?account=&offset=                       -> LetterDetail
    GET  /console/api/events?account=                                    -> text/event-stream, see below
    POST /console/api/trigger      TriggerRequest                        -> 201 ActionDone (job)
    POST /console/api/halt         AccountRequest                        -> 200 ActionDone (job)
    POST /console/api/resume       ResumeRequest                         -> 200 ActionDone (job)
    POST /console/api/rerun        AccountRequest                        -> 200 ActionDone (job)
    POST /console/api/rollback     RollbackRequest                       -> 200 RollbackDone, when all are deleted
    POST /console/api/verify       AccountRequest                        -> 202 ActionDone (task)
    POST /console/api/preflight    AccountRequest                        -> 202 ActionDone (task)
    POST /console/api/dlq-retry    RetryRequest                          -> 202 ActionDone (task)
    PUT  /console/api/flag         FlagRequest                           -> 200 Flag

Events. With `account`: `event: account`, `data:` an AccountDetail, at once and whenever it has changed. Without:
`event: accounts`, `data:` an AccountsChanged, all accounts at once (`complete: true`), later the changed ones. Polled
once a second. `event: trouble` with `{"message"}`: the state cannot be read just now, what the page shows is old;
the next `account` or `accounts` event ends it. Every event has an `id`; a reconnect with `Last-Event-ID` gets nothing
before something has changed if it has missed nothing. `event: beat` every 15 s keeps proxies from closing, and a page
that misses it knows that the connection is dead; it alone has no `id`. `event: bye` comes before the server stops; the
browser reconnects by itself. Over the limit of clients: 503 `TOO_MANY_CLIENTS`, and the page should poll instead.

A long roll back: the answer comes when all documents are deleted; `rollback` in AccountDetail shows its progress. If
the connection breaks meanwhile, the server continues; a repeated request joins the running one.
"""

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from ops.control.activity_logs import AccountId
from ops.control.backend import Backend
from ops.control.console_models import (
    AccountDetail,
    AccountList,
    AccountRequest,
    ActionDone,
    AuditEntries,
    Flag,
    FlagRequest,
    LetterDetail,
    LetterPage,
    ResumeRequest,
    RetryRequest,
    RollbackDone,
    RollbackRequest,
    Session,
    TriggerRequest,
)
from ops.control.console_state import ConsoleState, task_view
from ops.control.envelope import ApiError, RespCode, json_response
from ops.control.events import Events, EventStream, State, part_of
from ops.control.rollbacks import Rollbacks
from ops.control.routes import errors
from ops.control.status_reader import view_of
from ops.jobs import requests
from ops.jobs.jobs import Job
from ops.jobs.tasks import TaskKind

API_PREFIX = "/console/api"
PAGE_MAX = 500
ENTRIES_MAX = 500
OFFSET_MAX = 2**63 - 1
ALL = ""  # the watch of every account; no account id is empty
# Changes every second while a runner lives, and adds nothing to `waiting`.
SILENT = {"heartbeat_at"}

Account = Annotated[AccountId, Query()]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]


def console_routes(backend: Backend, rollbacks: Rollbacks, events: Events, version: str) -> APIRouter:
    """Return the console's endpoints."""
    state = ConsoleState(backend)
    router = APIRouter(prefix=API_PREFIX, tags=["console"])
    _add_reading(router, backend, state, version)
    _add_events(router, backend, state, events)
    _add_actions(router, backend, rollbacks)
    return router


def _add_reading(router: APIRouter, backend: Backend, state: ConsoleState, version: str) -> None:
    @router.get("/session", response_model=Session, responses=errors())
    async def session(request: Request) -> Response:
        """Return the signed-in user."""
        return _answer(Session(user=request.state.user, version=version, now=dt.datetime.now(dt.UTC)))

    @router.get("/accounts", response_model=AccountList, responses=errors())
    async def accounts(
        search: Annotated[str, Query(max_length=255, description="part of the account's id")] = "",
        cursor: Annotated[str, Query(max_length=255, description="`next_cursor` of the page before")] = "",
        limit: Limit = 100,
    ) -> Response:
        """Return the accounts that have a job or a flag."""
        rows = await backend.query(state.accounts)
        found = [row for row in rows if row.company_sso_id > cursor and search in row.company_sso_id]
        more = len(found) > limit
        page = found[:limit]
        return _answer(AccountList(accounts=page, next_cursor=page[-1].company_sso_id if more else None))

    @router.get("/account", response_model=AccountDetail, responses=errors())
    async def account(account: Account) -> Response:
        """Return all that is shown of an account; an unknown one is `not_started`."""
        return _answer(await backend.query(state.account, account))

    @router.get("/audit-log", response_model=AuditEntries, responses=errors())
    async def audit_log(
        account: Annotated[AccountId | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=ENTRIES_MAX)] = 100,
    ) -> Response:
        """Return who did what, of one account or of all."""
        return _answer(AuditEntries(entries=await backend.query(state.audit_entries, account, limit)))

    @router.get("/dead-letters", response_model=LetterPage, responses=errors())
    async def dead_letters(
        account: Account,
        cause: Annotated[str | None, Query(max_length=100)] = None,
        cursor: Annotated[int | None, Query(ge=0, le=OFFSET_MAX)] = None,
        limit: Limit = 50,
    ) -> Response:
        """Return the account's dead letters without their payloads."""
        return _answer(await backend.query(state.letters_page, account, cause, cursor, limit))

    @router.get("/dead-letter", response_model=LetterDetail, responses=errors(404))
    async def dead_letter(
        request: Request, account: Account, offset: Annotated[int, Query(ge=0, le=OFFSET_MAX)]
    ) -> Response:
        """Return one dead letter with its payload: personal data of the CRM, so the audit log has who has read it."""
        found = await backend.query(state.letter, account, offset)
        if found is None:
            raise ApiError(404, RespCode.NOT_FOUND, f"there is no dead letter at offset {offset}, or not any more")
        await backend.query(state.note_letter_read, account, offset, request.state.user, request.state.request_id)
        return _answer(found)


def _add_events(router: APIRouter, backend: Backend, state: ConsoleState, events: Events) -> None:
    async def look_at_all() -> State:
        return {row.company_sso_id: part_of(row, SILENT) for row in await backend.look(state.accounts)}

    @router.get(
        "/events",
        status_code=200,
        response_class=EventStream,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **errors()},
    )
    async def live(
        request: Request,
        account: Annotated[AccountId | None, Query()] = None,
        last_event_id: Annotated[str, Header(max_length=100)] = "",
    ) -> Response:
        """Stream what changes, of one account or of all, until the client goes."""

        async def look_at_one() -> State:
            assert account is not None
            return {"": part_of(await backend.look(state.account, account), SILENT)}

        client = events.join(account or ALL, look_at_all if account is None else look_at_one)
        frame = accounts_frame if account is None else account_frame
        stream = events.stream(client, last_event_id, frame, request.is_disconnected)
        return EventStream(stream, lambda: events.leave(client))


def _add_actions(router: APIRouter, backend: Backend, rollbacks: Rollbacks) -> None:
    control = backend.control

    @router.post("/trigger", status_code=201, response_model=ActionDone, responses=errors(403, 409, 422, body=True))
    async def trigger(request: Request, command: TriggerRequest) -> Response:
        """Start the account's migration."""
        job = await backend.query(
            requests.trigger,
            control,
            command.company_sso_id,
            date_range_start=command.date_range_start,
            triggered_by=request.state.user,
            request_id=request.state.request_id,
        )
        return _done(command.company_sso_id, "trigger", job=job, status=201)

    def change(name: str, function: Any, doc: str) -> None:
        async def changed(request: Request, command: AccountRequest) -> Response:
            job = await backend.query(
                function,
                control,
                command.company_sso_id,
                by=request.state.user,
                reason=command.reason,
                request_id=request.state.request_id,
            )
            return _done(command.company_sso_id, name, job=job)

        changed.__doc__ = doc
        router.add_api_route(
            f"/{name}",
            changed,
            methods=["POST"],
            response_model=ActionDone,
            responses=errors(403, 404, 409, body=True),
            operation_id=f"console_{name}",
            summary=name.capitalize(),
        )

    change("halt", requests.halt, "Stop the account's running job; cursors and offsets are kept.")
    change("rerun", requests.rerun, "Replay again what the account's last run has published.")

    @router.post("/resume", response_model=ActionDone, responses=errors(403, 404, 409, body=True))
    async def resume(request: Request, command: ResumeRequest) -> Response:
        """Continue a job that was halted or has failed; with `failure_bound`, until more than that has failed."""
        job = await backend.query(
            requests.resume,
            control,
            command.company_sso_id,
            by=request.state.user,
            reason=command.reason,
            request_id=request.state.request_id,
            failure_bound=command.failure_bound,
        )
        return _done(command.company_sso_id, "resume", job=job)

    def task(name: str, kind: TaskKind, doc: str) -> None:
        async def queued(request: Request, command: AccountRequest) -> Response:
            return await _queue(
                request, command.company_sso_id, name, kind, {"reason": command.reason} if command.reason else {}
            )

        queued.__doc__ = doc
        router.add_api_route(
            f"/{name}",
            queued,
            methods=["POST"],
            status_code=202,
            response_model=ActionDone,
            responses=errors(403, 404, 409, body=True),
            operation_id=f"console_{name}",
            summary=name.capitalize(),
        )

    async def _queue(request: Request, account: str, name: str, kind: TaskKind, arguments: dict[str, Any]) -> Response:
        task = await backend.query(
            requests.request_task,
            control,
            account,
            kind,
            by=request.state.user,
            arguments=arguments,
            request_id=request.state.request_id,
        )
        done = ActionDone(company_sso_id=account, action=name, task=task_view(task))
        return json_response(done.model_dump(mode="json"), 202)

    task("verify", TaskKind.VERIFY, "Have a runner prove the account's copy, document by document.")
    task("preflight", TaskKind.PREFLIGHT, "Have a runner check the preconditions of a migration.")

    @router.post("/dlq-retry", status_code=202, response_model=ActionDone, responses=errors(403, 404, 409, body=True))
    async def dlq_retry(request: Request, command: RetryRequest) -> Response:
        """Have a runner send the rows of dead letters through the topology again."""
        arguments: dict[str, Any] = {"force": command.force}
        if command.cause:
            arguments["cause"] = command.cause
        if command.audit_ids:
            arguments["audit_ids"] = command.audit_ids
        return await _queue(request, command.company_sso_id, "dlq-retry", TaskKind.DLQ_RETRY, arguments)

    @router.post("/rollback", response_model=RollbackDone, responses=errors(403, 404, 409, 500, body=True))
    async def rollback(request: Request, command: RollbackRequest) -> Response:
        """Delete what the replay has written for the account; answers when all of it is deleted."""
        if command.confirm != command.company_sso_id:
            raise ApiError(
                409,
                RespCode.CONFIRMATION_MISMATCH,
                "the confirmation is not the account; nothing was deleted",
                errors=[("confirm", "type the account's id")],
            )
        removed = await rollbacks.roll_back(
            command.company_sso_id,
            by=request.state.user,
            gone=request.is_disconnected,
            reason=command.reason,
            request_id=request.state.request_id,
        )
        return _answer(RollbackDone(company_sso_id=command.company_sso_id, records_removed=removed))

    @router.put("/flag", response_model=Flag, responses=errors(403, body=True))
    async def flag(request: Request, command: FlagRequest) -> Response:
        """Turn the account's migration flag on or off."""
        flag = await backend.query(
            requests.set_flag,
            control,
            command.company_sso_id,
            command.enabled,
            by=request.state.user,
            request_id=request.state.request_id,
        )
        return _answer(Flag(enabled=flag.enabled, changed_at=flag.changed_at, changed_by=flag.changed_by))


def account_frame(state: State, known: State | None) -> bytes:  # noqa: ARG001 - an account is always sent whole
    """Return an `account` event."""
    return b"event: account\ndata: " + state[""][1] + b"\n\n"


def accounts_frame(state: State, known: State | None) -> bytes:
    """Return an `accounts` event: everything, or what differs from what the client knows."""
    complete = known is None or not known.keys() <= state.keys()  # an account has been removed: send all
    before = {} if known is None or complete else known
    news = [sent for name, (content, sent) in state.items() if name not in before or before[name][0] != content]
    whole = b"true" if complete else b"false"
    return b'event: accounts\ndata: {"complete":' + whole + b',"accounts":[' + b",".join(news) + b"]}\n\n"


def _done(account: str, action: str, *, job: Job, status: int = 200) -> Response:
    done = ActionDone(company_sso_id=account, action=action, job=view_of(job, dt.datetime.now(dt.UTC)))
    return json_response(done.model_dump(mode="json"), status)


def _answer(model: Any) -> Response:
    return json_response(model.model_dump(mode="json"))
