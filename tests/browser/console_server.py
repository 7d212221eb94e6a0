"""A control plane that a test scripts: the console's files, and answers built from the models of the real one."""

import datetime as dt
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from pydantic import BaseModel

from ops.control.console_models import (
    AccountDetail,
    AccountList,
    AccountRow,
    AccountsChanged,
    Action,
    ActionDone,
    AuditEntries,
    AuditEntry,
    Flag,
    JobView,
    LetterDetail,
    LetterPage,
    LetterSource,
    LetterView,
    Pace,
    Rollback,
    RollbackDone,
    Session,
    Stage,
    StageName,
    TaskView,
)
from ops.control.edge import SECURITY_HEADERS
from schemas.topics import AccountTopics
from tests.fixtures.browser import WEB, Asked, PageServer, Reply, file_route

NOW = dt.datetime(2026, 3, 2, 3, 14, 7, tzinfo=dt.UTC)  # also the clock of the pages
RUNNING, DONE, HALTED, FRESH = "acme-industries", "borealis-foods", "cobalt-retail", "delta-labs"
ACTIONS = ("trigger", "halt", "resume", "rerun", "rollback", "verify", "preflight", "dlq-retry")


def minutes_ago(minutes: float) -> dt.datetime:
    return NOW - dt.timedelta(minutes=minutes)


def job_view(account: str = RUNNING, **more: Any) -> JobView:
    values: dict[str, Any] = {
        "job_id": f"{account}-1",
        "company_sso_id": account,
        "status": "in_progress",
        "run": 41,
        "partial": False,
        "waiting": False,
        "progress_pct": 61.4,
        "records_total": 15_204_118,
        "records_migrated": 7_012_557,
        "records_skipped": 2_322_590,
        "records_failed": 186,
        "records_foreign": 0,
        "skips_by_reason": {
            "contact_not_found": 1_201_004,
            "post_sync_live_feed": 804_220,
            "unmapped_action_type": 317_366,
        },
        "failures_by_cause": {"undecodable_changes": 171, "document_too_large": 15},
        "accuracy_pct": None,
        "partitions": 8,
        "last_audit_id": 9_335_333,
        "top_audit_id": 15_310_022,
        "date_range_start": None,
        "triggered_by": "mira",
        "created_at": minutes_ago(27),
        "started_at": minutes_ago(27),
        "updated_at": NOW,
        "finished_at": None,
        "heartbeat_at": NOW,
        "error": None,
    }
    return JobView(**{**values, **more})


def completed_job(account: str = DONE, **more: Any) -> JobView:
    values: dict[str, Any] = {
        "status": "completed",
        "run": 38,
        "progress_pct": 100,
        "records_total": 1_204_770,
        "records_migrated": 1_100_210,
        "records_skipped": 104_557,
        "records_failed": 3,
        "skips_by_reason": {"contact_not_found": 80_112, "post_sync_live_feed": 20_004, "duplicate_external_id": 4_441},
        "failures_by_cause": {"undecodable_changes": 3},
        "accuracy_pct": 100,
        "started_at": minutes_ago(190),
        "created_at": minutes_ago(190),
        "updated_at": minutes_ago(188),
        "finished_at": minutes_ago(188),
    }
    return job_view(account, **{**values, **more})


def halted_job(**more: Any) -> JobView:
    values: dict[str, Any] = {
        "status": "halted",
        "run": 40,
        "progress_pct": 12.8,
        "records_total": 402_300,
        "records_migrated": 30_100,
        "records_skipped": 15_020,
        "records_failed": 6_402,
        "skips_by_reason": {"contact_not_found": 15_020},
        "failures_by_cause": {"write_refused": 6_402},
        "started_at": minutes_ago(75),
        "updated_at": minutes_ago(66),
        "error": "failure rate 0.124 is above 0.10 (6,402 of 51,522 rows failed)",
    }
    return job_view(HALTED, **{**values, **more})


def actions_of(status: str, *, flag: bool = True) -> list[Action]:
    """Return what the account may do in a status, with reasons such as the server gives."""
    allowed = {
        "not_started": {"trigger", "preflight"},
        "in_progress": {"halt", "preflight"},
        "halted": {"resume", "rollback", "verify", "preflight", "dlq-retry"},
        "failed": {"resume", "rollback", "verify", "preflight"},
        "completed": {"rerun", "rollback", "verify", "preflight", "dlq-retry"},
        "rolled_back": {"trigger", "preflight"},
    }[status]
    why = {
        "not_started": "there is no job yet",
        "in_progress": "a job is in progress: halt it first",
        "halted": "the job is halted",
    }.get(status, f"the job is {status}")
    actions = [Action(name=name, allowed=name in allowed, why_not=None if name in allowed else why) for name in ACTIONS]
    if not flag and status == "not_started":
        refused = Action(name="trigger", allowed=False, why_not="the migration flag is off: turn it on first")
        actions = [refused if action.name == "trigger" else action for action in actions]
    return actions


def stages_of(
    job: JobView, *, replay: int | None = 0, outcomes: int | None = 0, letters: int | None = 0
) -> list[Stage]:
    handled = job.records_migrated + job.records_skipped + job.records_failed
    topics = AccountTopics.of(job.company_sso_id)
    waiting = (replay or 0) + (outcomes or 0)
    return [
        Stage(name=StageName.PRODUCER, topic=None, done=handled + waiting, total=job.records_total, waiting=None),
        Stage(name=StageName.PROCESSORS, topic=topics.replay, done=None, total=None, waiting=replay),
        Stage(name=StageName.SINK, topic=topics.outcomes, done=handled, total=job.records_total, waiting=outcomes),
        Stage(name=StageName.DEAD_LETTERS, topic=topics.dead_letters, done=None, total=None, waiting=letters),
    ]


def task(kind: str, account: str, result: dict[str, Any] | None, **more: Any) -> TaskView:
    values: dict[str, Any] = {
        "task_id": f"{kind}-1",
        "company_sso_id": account,
        "kind": kind,
        "status": "done",
        "requested_by": "mira",
        "requested_at": minutes_ago(31),
        "started_at": minutes_ago(31),
        "finished_at": minutes_ago(30),
        "progress": {},
        "result": result,
        "error": None,
    }
    return TaskView(**{**values, **more})


def check(name: str, verdict: str, found: str, to_do: str = "") -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "found": found, "to_do": to_do, "facts": {}}


PREFLIGHT = {
    "ok": True,
    "checks": [
        check("source_read_only", "ok", "the user of the DSN cannot write"),
        check("rows_in_scope", "ok", "15,204,118 rows, ids 12 to 15,310,022, from 2019-04-02 to 2026-03-02"),
        check(
            "page_query",
            "warn",
            "the account's page takes 340 ms: rows are filtered after the primary key",
            "CREATE INDEX CONCURRENTLY ON audits (account_id, id)",
        ),
        check("contact_coverage", "ok", "99.62 % of 88,201 persons have a contact"),
        check("user_directory", "ok", "answers in 41 ms; names a deactivated user as inactive"),
        check("kafka", "ok", "3 brokers, 3 replicas, topics can be made"),
        check("mongodb", "ok", "indexes of schema 7 are there"),
    ],
}
PREFLIGHT_BAD = {
    "ok": False,
    "checks": [
        check("source_read_only", "ok", "the user of the DSN cannot write"),
        check(
            "contact_coverage",
            "fail",
            "91.20 % of 4,410 persons have a contact; 99 % are needed",
            "finish the contact migration of delta-labs, then run the preflight again",
        ),
        check("user_directory", "warn", "did not answer in 3 s", "see that USER_DIRECTORY_URL is reachable from here"),
    ],
}
VERIFIED = {
    "company_sso_id": DONE,
    "equal": True,
    "source_rows": 1_204_770,
    "documents_expected": 1_104_651,
    "documents": 1_104_651,
    "documents_equal": 1_104_651,
    "missing": 0,
    "extra": 0,
    "different": 0,
    "dead_letter_lost": 0,
    "findings": [],
    "counts": [],
    "offsets": [],
    "seconds": 71.204,
    "rows_per_s": 16_920,
}
NOT_EQUAL = {
    **VERIFIED,
    "equal": False,
    "documents": 1_104_649,
    "documents_equal": 1_104_648,
    "missing": 2,
    "different": 1,
    "findings": [
        {"kind": "missing", "audit_id": 80_112, "age_s": 90_000, "why": "no document has its external_id"},
        {"kind": "missing", "audit_id": 80_113, "age_s": 90_000, "why": "no document has its external_id"},
        {"kind": "different", "audit_id": 91_004, "age_s": 4_000, "why": "edited since", "fields": ["changes.0.to"]},
    ],
    "counts": [{"name": "migrated", "job": 1_104_651, "truth": 1_104_653}],
}


def flag(*, enabled: bool = True) -> Flag:
    return Flag(
        enabled=enabled, changed_at=minutes_ago(200) if enabled else None, changed_by="mira" if enabled else None
    )


def detail(account: str, job: JobView | None, **more: Any) -> AccountDetail:
    status = job.status.value if job else "not_started"
    values: dict[str, Any] = {
        "company_sso_id": account,
        "status": status,
        "flag": flag(enabled=job is not None),
        "job": job,
        "history": [job] if job else [],
        "pace": None,
        "stages": stages_of(job) if job else [],
        "preflight": None,
        "verification": None,
        "tasks": [],
        "rollback": None,
        "actions": actions_of(status, flag=job is not None),
    }
    return AccountDetail(**{**values, **more})


def running_detail(**more: Any) -> AccountDetail:
    job = job_view(**more)
    former = completed_job(RUNNING, run=29, status="rolled_back", accuracy_pct=None)
    return detail(
        RUNNING,
        job,
        pace=Pace(rows_per_s=6_120.4, rows_per_s_average=5_762.1, eta_s=958),
        stages=stages_of(job, replay=41_220, outcomes=3_180, letters=186),
        history=[job, former],
        preflight=task("preflight", RUNNING, PREFLIGHT),
    )


def completed_detail(**more: Any) -> AccountDetail:
    job = completed_job()
    values: dict[str, Any] = {
        "stages": stages_of(job, letters=3),
        "preflight": task("preflight", DONE, PREFLIGHT),
        "verification": task("verify", DONE, VERIFIED),
    }
    return detail(DONE, job, **{**values, **more})


def halted_detail() -> AccountDetail:
    job = halted_job()
    return detail(HALTED, job, stages=stages_of(job, replay=310_004, outcomes=12, letters=6_402))


def fresh_detail() -> AccountDetail:
    return detail(FRESH, None, preflight=task("preflight", FRESH, PREFLIGHT_BAD))


def rolling_back_detail(verified: dict[str, Any]) -> AccountDetail:
    progress = Rollback(removed=402_000, remaining=698_210, started_at=minutes_ago(1), by="mira", stalled=False)
    return completed_detail(rollback=progress, verification=task("verify", DONE, verified))


LETTER_SOURCE = LetterSource(topic=AccountTopics.of(RUNNING).replay, partition=3, offset=1_204_551)


def letter(offset: int, audit_id: int | None, cause: str, text: str, **more: Any) -> LetterView:
    values: dict[str, Any] = {
        "offset": offset,
        "audit_id": audit_id,
        "cause": cause,
        "detail": text,
        "failed_at": minutes_ago(offset % 40),
        "run": 41,
        "source": LETTER_SOURCE,
        "payload_bytes": 612,
        "failures": 1,
        "repeats": 0,
        "state": "waiting",
        "why": "",
    }
    return LetterView(**{**values, **more})


LETTERS = [
    letter(185, 9_331_204, "undecodable_changes", "line 3: mapping values are not allowed here"),
    letter(184, 9_330_118, "document_too_large", "17,203,441 bytes; MongoDB takes 16,777,216"),
    letter(171, 9_102_550, "undecodable_changes", "a tag is not closed", state="resolved", why="has a document"),
    letter(150, None, "undecodable_record", "not Avro of a schema we know", state="no_row", payload_bytes=48),
    letter(149, 8_811_007, "undecodable_changes", "alias expansion over 10,000 nodes", failures=4),
]
PAYLOADS: dict[int, dict[str, Any]] = {
    185: {
        "kind": "AuditEvent",
        "bytes": 612,
        "fields": {
            "audit_id": 9_331_204,
            "auditable_type": "Deal",
            "action": "update",
            "audited_changes": "---\nname:\n- <script>window.stolen = true</script>\n- : broken: yaml\n",
            "comment": '{"crm_person_id": 88012, "source": "import"}',
            "username": "",
            "created_at": "2024-11-05T02:10:44.120000+00:00",
        },
    },
    150: {
        "kind": "undecodable",
        "bytes": 48,
        "hex": (b"\x00\x01garbage that is no record of ours \xff\xfe").hex(),
        "why": "no",
    },
}
ENTRIES = [
    AuditEntry(
        at=minutes_ago(27), who="mira", action="trigger", company_sso_id=RUNNING, outcome="ok", detail={"run": 41}
    ),
    AuditEntry(
        at=minutes_ago(28), who="jonas", action="trigger", company_sso_id=RUNNING, outcome="FLAG_DISABLED", detail={}
    ),
    AuditEntry(
        at=minutes_ago(28), who="mira", action="flag", company_sso_id=RUNNING, outcome="ok", detail={"enabled": True}
    ),
]


def envelope(status: int, code: str, message: str, **meta: Any) -> Reply:
    body = {"status": "error", "resp_code": code, "message": message, "meta": {"request_id": "req-7f31", **meta}}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def as_json(model: BaseModel, status: int = 200) -> Reply:
    return Reply(status, model.model_dump_json().encode(), {"Content-Type": "application/json"})


class ConsoleServer:
    """The control plane. `details` are its accounts; what has been asked for is in `posted`; `replies` by action."""

    def __init__(self, server: PageServer) -> None:
        self.server = server
        self.url = f"{server.url}/console/"
        self.details = {
            one.company_sso_id: one for one in (running_detail(), completed_detail(), halted_detail(), fresh_detail())
        }
        self.letters = list(LETTERS)
        self.entries = list(ENTRIES)
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, Reply] = {}
        self.events_reply: Reply | None = None  # instead of events
        self.down = False
        self._listeners: list[tuple[str | None, queue.Queue[bytes | None]]] = []
        self._lock = threading.Lock()
        for path in sorted((WEB / "console").iterdir()):
            name = "" if path.name == "index.html" else path.name
            server.routes[f"/console/{name}"] = file_route(path, **SECURITY_HEADERS)
        api = {
            "session": lambda _asked: as_json(Session(user="mira", version="0.1.0", now=NOW)),
            "accounts": lambda _asked: as_json(AccountList(accounts=self.rows(), next_cursor=None)),
            "account": lambda asked: as_json(self.details[account_of(asked)]),
            "audit-log": lambda _asked: as_json(AuditEntries(entries=self.entries)),
            "dead-letters": self._letters,
            "dead-letter": self._letter,
            "events": self._events,
            "flag": self._flag,
            **dict.fromkeys(ACTIONS, self._action),
        }
        for name, answer in api.items():
            server.routes[f"/console/api/{name}"] = self._or_down(answer)

    def _or_down(self, answer: Any) -> Any:
        def guarded(asked: Asked) -> Reply:
            return envelope(503, "SERVICE_UNAVAILABLE", "MongoDB does not answer") if self.down else answer(asked)

        return guarded

    def rows(self) -> list[AccountRow]:
        return [row_of(one) for one in self.details.values()]

    def show(self, one: AccountDetail) -> None:
        """Change an account, and tell who listens."""
        self.details[one.company_sso_id] = one
        changed = AccountsChanged(complete=False, accounts=[row_of(one)])
        with self._lock:
            for account, events in self._listeners:
                if account is None:
                    events.put(event("accounts", changed.model_dump_json()))
                elif account == one.company_sso_id:
                    events.put(event("account", one.model_dump_json()))

    def send(self, piece: bytes | None) -> None:
        """Send this to all who listen; None: hang up."""
        with self._lock:
            for _, events in self._listeners:
                events.put(piece)
            if piece is None:
                self._listeners.clear()

    @property
    def listeners(self) -> int:
        with self._lock:
            return len(self._listeners)

    def close(self) -> None:
        self.send(None)

    def _events(self, asked: Asked) -> Reply:
        if self.events_reply is not None:
            return self.events_reply
        account = account_of(asked) if "account=" in asked.query else None
        events: queue.Queue[bytes | None] = queue.Queue()
        if account is None:
            first = event("accounts", AccountsChanged(complete=True, accounts=self.rows()).model_dump_json())
        else:
            first = event("account", self.details[account].model_dump_json())
        with self._lock:
            self._listeners.append((account, events))

        def pieces() -> Iterator[bytes]:
            yield b"retry: 200\n\n" + first
            while (piece := events.get()) is not None:
                yield piece

        return Reply(200, b"", {"Content-Type": "text/event-stream"}, pieces())

    def _letters(self, asked: Asked) -> Reply:
        cause = parse_qs(asked.query).get("cause", [""])[0]
        chosen = [one for one in self.letters if cause in ("", one.cause)]
        states = {state: sum(1 for one in chosen if one.state == state) for state in ("waiting", "resolved", "no_row")}
        causes: dict[str, int] = {}
        for one in self.letters:
            causes[one.cause] = causes.get(one.cause, 0) + 1
        cursor = int(parse_qs(asked.query).get("cursor", ["0"])[0])
        end = cursor + int(parse_qs(asked.query)["limit"][0])
        return as_json(
            LetterPage(
                company_sso_id=account_of(asked),
                total=len(chosen),
                states=states,
                causes=causes,
                letters=chosen[cursor:end],
                next_cursor=str(end) if end < len(chosen) else None,
                truncated=False,
            )
        )

    def _letter(self, asked: Asked) -> Reply:
        offset = int(parse_qs(asked.query)["offset"][0])
        found = next(one for one in self.letters if one.offset == offset)
        if offset not in PAYLOADS:
            return envelope(404, "NOT_FOUND", f"there is no dead letter at offset {offset}, or not any more")
        return as_json(LetterDetail(**found.model_dump(), key="88012", payload=PAYLOADS[offset]))

    def _flag(self, asked: Asked) -> Reply:
        body = json.loads(asked.body)
        self.posted.append(("flag", body))
        if "flag" in self.replies:
            return self.replies["flag"]
        account = body["company_sso_id"]
        changed = Flag(enabled=body["enabled"], changed_at=NOW, changed_by="mira")
        before = self.details[account]
        self.show(
            before.model_copy(update={"flag": changed, "actions": actions_of(before.status, flag=body["enabled"])})
        )
        return as_json(changed)

    def _action(self, asked: Asked) -> Reply:
        name = asked.path.rsplit("/", 1)[1]
        body = json.loads(asked.body)
        self.posted.append((name, body))
        assert asked.headers.get("X-Requested-With")
        assert asked.headers.get("Content-Type") == "application/json"
        if name in self.replies:
            return self.replies[name]
        account = body["company_sso_id"]
        if name == "rollback":
            return as_json(RollbackDone(company_sso_id=account, records_removed=1_100_210))
        if name in ("verify", "preflight", "dlq-retry"):
            queued = task(
                name.replace("dlq-", "dlq_"), account, None, status="queued", started_at=None, finished_at=None
            )
            self.show(self.details[account].model_copy(update={"tasks": [queued]}))
            return as_json(ActionDone(company_sso_id=account, action=name, task=queued), 202)
        return as_json(ActionDone(company_sso_id=account, action=name, job=self.details[account].job))


def event(name: str, data: str) -> bytes:
    return f"event: {name}\nid: 1\ndata: {data}\n\n".encode()


def account_of(asked: Asked) -> str:
    return parse_qs(asked.query)["account"][0]


def row_of(one: AccountDetail) -> AccountRow:
    return AccountRow(company_sso_id=one.company_sso_id, flag_enabled=one.flag.enabled, status=one.status, job=one.job)
