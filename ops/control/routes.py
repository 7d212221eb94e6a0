"""The endpoints for services and for the customer's browser; health and readiness."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from pymongo.errors import PyMongoError
from starlette.responses import RedirectResponse, Response

from ops.control import activity_logs, http_metrics
from ops.control.activity_logs import AccountId, MigrateAnswer, MigrateRequest, Moment
from ops.control.auth import BrowserSession
from ops.control.backend import Backend
from ops.control.envelope import ApiError, ErrorEnvelope, RespCode, json_response
from ops.control.http_metrics import HttpMetrics
from ops.control.job_exposition import JobMetrics
from ops.control.rollbacks import Rollbacks
from ops.control.settings import ControlSettings
from ops.control.status_reader import PublicStatus, Status, status_of
from ops.jobs import migrations, requests
from schemas.collections import JOBS
from schemas.errors import ReplayError
from schemas.process.exposition import Collected
from schemas.process.mongodb import Database
from schemas.vocabulary import JobStatus

READY_TIMEOUT_S = 3.0
JOBS_TIMEOUT_S = 8.0  # under the 10 s after which Prometheus gives up a scrape
_WHAT = {
    400: "VALIDATION_ERROR, and the endpoint's own checks: `meta.errors` names the fields",
    401: "UNAUTHENTICATED",
    403: "Not allowed: `resp_code` has the reason",
    404: "JOB_NOT_FOUND",
    409: "Not in the job's present state: `resp_code` has the reason",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "contacts_not_migrated: under 99 % of the CRM's persons are contacts; `meta` has the counts",
    429: "TOO_MANY_FAILURES: too many failed logins",
    500: "ROLLBACK_FAILED: documents are left; repeat the request, it continues",
    503: "SERVICE_UNAVAILABLE: a server behind this one does not answer; try again",
}


def errors(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the answers that are no success, for OpenAPI; `body` adds those to a body that is not usable."""
    every = sorted({400, 401, 429, 503, *statuses, *((413, 415) if body else ())})
    return {status: {"model": ErrorEnvelope, "description": _WHAT[status]} for status in every}


class Migration(BaseModel):
    """Start an account's migration."""

    model_config = ConfigDict(extra="forbid")

    company_sso_id: AccountId
    date_range_start: Moment | None = Field(None, description="leave out audits created before this")


class Account(BaseModel):
    """One account."""

    model_config = ConfigDict(extra="forbid")

    company_sso_id: AccountId


class MigrationStarted(BaseModel):
    """The created job; a runner claims it within seconds."""

    job_id: str
    status: JobStatus


class RolledBack(BaseModel):
    """The account's replayed documents are deleted."""

    records_removed: int = Field(
        description="by this roll back, interrupted requests for it included; 0 when there was nothing left"
    )


class Health(BaseModel):
    """This process answers."""

    status: str


def private_routes(backend: Backend, rollbacks: Rollbacks) -> APIRouter:
    """Return the endpoints for services: Basic authentication."""
    router = APIRouter(prefix="/private/activity_logs", tags=["private"])

    @router.post(
        "/crm_migration", status_code=201, response_model=MigrationStarted, responses=errors(403, 409, 422, body=True)
    )
    async def start_migration(request: Request, migration: Migration) -> Response:
        """Start the migration of an account whose flag is on: 403 FLAG_DISABLED if it is off.

        409 JOB_ALREADY_RUNNING, ALREADY_COMPLETED, or ILLEGAL_TRANSITION (halted or failed: resume it or roll it back
        first). 422 contacts_not_migrated: no job is made. 400 also for an account that the CRM does not have.
        """
        job = await backend.query(
            requests.trigger,
            backend.control,
            migration.company_sso_id,
            date_range_start=migration.date_range_start,
            triggered_by=request.state.user,
            request_id=request.state.request_id,
        )
        return json_response({"job_id": job.job_id, "status": job.status.value}, 201)

    @router.get("/crm_migration/status", response_model=Status, responses=errors(), response_model_exclude_none=True)
    async def migration_status(company_sso_id: Annotated[AccountId, Query()]) -> Response:
        """Return the progress of an account's migration; `{"status": "not_started"}` alone if it has no job."""
        return json_response(status_of(await backend.read(backend.store.latest, company_sso_id)))

    @router.post("/crm_migration/rollback", response_model=RolledBack, responses=errors(404, 409, 500, body=True))
    async def roll_back(request: Request, account: Account) -> Response:
        """Delete what the replay has written for the account, also by `migrate`, and answer when all of it is deleted.

        Takes about a second for 20,000 documents, so an account of millions outlasts a gateway. The work continues when
        the client disconnects; a repeated request joins it, or returns the number that no client has received. After
        that the answer is 0. 404 JOB_NOT_FOUND, unless documents came by `migrate`; 409 JOB_ALREADY_RUNNING: halt it
        first; 500 ROLLBACK_FAILED: repeat the request, it continues.
        """
        removed = await rollbacks.roll_back(
            account.company_sso_id,
            by=request.state.user,
            gone=request.is_disconnected,
            request_id=request.state.request_id,
        )
        return json_response({"records_removed": removed})

    @router.post("/migrate", response_model=MigrateAnswer, responses=errors(body=True))
    async def write_activity_logs(request: Request, batch: MigrateRequest) -> Response:
        """Write up to 20 activity logs; 400 BATCH_TOO_LARGE for more. Idempotent by `external_id`.

        They belong to the replays of their accounts, whether these have run or not: a roll back removes them, a run
        counts them as duplicates, and those without a row are named by its job and by `crm-replay check`. After a 503
        or a broken connection send the same batch again: what was written is skipped.
        """
        answer = await backend.read(
            activity_logs.write,
            backend.database,
            batch.records,
            by=request.state.user,
            request_id=request.state.request_id,
        )
        return json_response(answer.model_dump(mode="json"))

    return router


def browser_routes(backend: Backend, settings: ControlSettings) -> APIRouter:
    """Return the customer's view of the import, by session token; the gateway's path and the browser's are one."""
    router = APIRouter(tags=["browser"])

    async def import_status(
        request: Request,
        company_sso_id: Annotated[
            list[str] | None, Query(description="may be given, and must be the session's")
        ] = None,
    ) -> Response:
        """Return the progress of the import of the session's own account.

        401 without a valid session. 403 PERMISSION_DENIED without the permission `customers_customers_view`, or
        FOREIGN_ACCOUNT if the request names another account.
        """
        session: BrowserSession = request.state.session
        if settings.jwt_permission not in session.permissions:
            raise ApiError(403, RespCode.PERMISSION_DENIED, f"the permission {settings.jwt_permission} is needed")
        if any(named != session.company_sso_id for named in company_sso_id or ()):
            raise ApiError(403, RespCode.FOREIGN_ACCOUNT, "a session sees its own account only")
        job = await backend.read(backend.store.latest, session.company_sso_id)
        return json_response(status_of(job, public=True))

    for path in ("/iag/v1/crm_migration/status", "/v1/crm_migration/status"):
        router.add_api_route(
            path,
            import_status,
            methods=["GET"],
            response_model=PublicStatus,
            responses=errors(403),
            response_model_exclude_none=True,
            operation_id=f"import_status{path.replace('/', '_')}",
        )
    return router


def own_routes(backend: Backend, metrics: HttpMetrics) -> APIRouter:
    """Return the endpoints for orchestrators, Prometheus and the bare address."""
    router = APIRouter(tags=["operation"])
    jobs = JobMetrics(backend)

    @router.get("/healthz", response_model=Health)
    async def healthz() -> Response:
        """Report that this process is alive; queries no server."""
        return json_response({"status": "ok"})

    @router.get("/readyz", response_model=Health, responses={503: {"model": ErrorEnvelope, "description": "NOT_READY"}})
    async def readyz() -> Response:
        """Report whether MongoDB responds and its schema is this release's; 503 with the cause."""
        wrong = "it is stopping" if backend.stopping.is_set() else await _what_is_wrong(backend)
        if wrong:
            raise ApiError(503, RespCode.NOT_READY, wrong, headers={"retry-after": "5"})
        return json_response({"status": "ready"})

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {http_metrics.CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Return the counters in Prometheus's text format."""
        try:
            counts = await asyncio.wait_for(backend.read(count_jobs, backend.database), READY_TIMEOUT_S)
        except (ApiError, PyMongoError, TimeoutError):
            metrics.jobs_known.set(0)
        else:
            metrics.jobs_known.set(1)
            for status in JobStatus:
                metrics.jobs.labels(status.value).set(counts.get(status.value, 0))
        return Response(metrics.text() + await _of_jobs(), media_type=http_metrics.CONTENT_TYPE)

    async def _of_jobs() -> bytes:
        """Return the jobs' metrics; while MongoDB is away, which `crm_control_jobs_known` reports, the last known ones.

        Without them an alert that is firing would be taken for resolved.
        """
        try:
            values = await asyncio.wait_for(backend.query(jobs.read), JOBS_TIMEOUT_S)
        except (ApiError, PyMongoError, TimeoutError):
            values = jobs.known
        registry = CollectorRegistry()
        registry.register(Collected(lambda: values))  # type: ignore[arg-type]
        return generate_latest(registry)

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        """Send people to the console."""
        return RedirectResponse("/console/")

    return router


def count_jobs(database: Database) -> dict[str, int]:
    """Return how many jobs are in each status; replays of chosen rows are left out."""
    groups = database[JOBS].aggregate(
        [{"$match": {"partial": {"$ne": True}}}, {"$group": {"_id": "$status", "jobs": {"$sum": 1}}}]
    )
    return {str(group["_id"]): int(group["jobs"]) for group in groups}


async def _what_is_wrong(backend: Backend) -> str:
    """Return why requests cannot be served, in one line; "" if they can."""
    try:
        await asyncio.wait_for(backend.read(migrations.require_current, backend.database), READY_TIMEOUT_S)
    except TimeoutError:
        return "MongoDB does not answer"
    except ApiError as error:
        return error.message
    except (PyMongoError, ReplayError) as error:
        return f"MongoDB refuses ({type(error).__name__})"
    return ""
