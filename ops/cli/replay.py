"""Replays on this host: run, resume, rerun, status, and workers that join."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.cli import host
from ops.cli.ledger import print_ledger
from ops.cli.opened import Opened
from ops.cli.options import Account, AsJson, DateRangeStart, Detach, Feed, Live, Mapping, Partitions, Workers, utc
from ops.jobs import enrichments, http_documents
from ops.jobs.audit_ids import parse_audit_ids
from ops.jobs.counts import counts_of
from ops.jobs.guards import require_bound
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore
from ops.progress import RunView, view_for
from ops.runner.forkserver import forked
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.topics import LIVE_FEED, encode_account
from schemas.vocabulary import JobStatus

NOTHING: tuple[object, ...] = (None, {}, [], "")  # has no row of its own where a person reads


def run(
    account: Account,
    mapping: Mapping = "",
    partitions: Partitions = 4,
    processors: Workers = 1,
    sinks: Workers = 1,
    date_range_start: DateRangeStart = None,
    enrich_after: Annotated[
        bool | None,
        typer.Option(
            "--enrich/--no-enrich",
            help="Enrich its association logs, overriding the mapping; --enrich --json: a second line.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay one account: every role of its job on this host, until the ledger is closed. Resumes after a kill.

    The operator decides: the account's migration flag and its contacts' coverage are not checked, as they are
    by `crm-replay trigger` and over HTTP.
    """
    from ops.runner.options import RunOptions

    options = RunOptions(
        mapping, partitions, processors, sinks, utc(date_range_start), home=host.home(), enrich=enrich_after
    )
    _run(account, options, as_json=as_json)


def resume(
    account: Account,
    mapping: Mapping = "",
    processors: Workers = 1,
    sinks: Workers = 1,
    failure_bound: Annotated[
        float | None,
        typer.Option(
            help="Halt only above this failure rate (0.25: a quarter), until the next resume. Needs --reason.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.", show_default=False)] = "",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Resume a job that was halted or has failed, once the cause is fixed: here, or with --detach by a runner.

    Failures count over the job's whole life: a job that too many failures halted halts again unless their rows have
    been repaired (crm-replay dlq retry), or --failure-bound allows for them.
    """
    require_bound(failure_bound, reason)
    if detach:
        from ops.cli import requests

        requests.resume_detached(account, failure_bound=failure_bound, reason=reason, as_json=as_json)
        return
    from ops.runner.options import RunOptions

    options = RunOptions(
        mapping,
        processors=processors,
        sinks=sinks,
        resume_halted=True,
        failure_bound=failure_bound,
        reason=reason,
        home=host.home(),
    )
    _run(account, options, as_json=as_json)


def rerun(
    account: Account,
    since: Annotated[
        datetime | None, typer.Option("--from", help="Only rows created at or after this (UTC).", show_default=False)
    ] = None,
    audit_ids: Annotated[
        str, typer.Option(help="Only these: 17,18,20-25, or @FILE with one or more a line.", show_default=False)
    ] = "",
    mapping: Mapping = "",
    processors: Workers = 1,
    sinks: Workers = 1,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Replay again: what was published, by offset reset; or a part of the source. Inserts what is missing."""
    if detach:
        if since is not None or audit_ids:
            raise BadInputError("a part of the source is replayed here and now", "leave out --detach")
        from ops.cli import requests

        requests.rerun_detached(account, as_json=as_json)
        return
    from ops.runner import replay as runner
    from ops.runner.options import RunOptions

    options = RunOptions(mapping, processors=processors, sinks=sinks, home=host.home())
    if since is not None and audit_ids:
        raise BadInputError("--from and --audit-ids exclude each other", "give one of them")
    if audit_ids:
        chosen = parse_audit_ids(audit_ids)
        _finish(lambda *how: runner.run_selected(account, chosen, *how), account, options, as_json=as_json)
    elif since is not None:
        start = utc(since)
        assert start is not None
        _finish(lambda *how: runner.run_since(account, start, *how), account, options, as_json=as_json)
    else:
        _finish(lambda *how: runner.rerun_account(account, *how), account, options, as_json=as_json)


def _run(account: str, options: Any, *, as_json: bool) -> None:
    from ops.runner.replay import run_account  # the clients of all three packages: not for `crm-replay --help`

    _finish(lambda *how: run_account(account, *how), account, options, as_json=as_json)


def _finish(replay: Callable[[Any, Connections, RunView], Any], account: str, options: Any, *, as_json: bool) -> None:
    """Run a replay, show its ledger, and raise ReplayError if that is out of balance.

    Its workers' libraries are loaded while the runner surveys the source and publishes the references.
    """
    from ops.runner.worker_metrics import gathering  # only for commands that run workers

    view = view_for(Console(stderr=True))
    with forked() as forks, gathering("runner", options.home):
        try:
            result = replay(replace(options, forks=forks), host.connections(), view)
        finally:
            view.close()
    if as_json:
        typer.echo(json.dumps({**_job_summary(result.job), "seconds": round(result.seconds, 3)}))
        if options.enrich and (enriched := enrichments.view_of(result.job.enrichment)):
            typer.echo(enriched.model_dump_json())
    else:
        print_ledger(Console(), account, result.ledger, seconds=result.seconds)
        if line := enrichments.in_words(enrichments.view_of(result.job.enrichment), account):
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
        if line := http_documents.in_words(result.job.http_documents, account):
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
    if not (result.ledger.balanced and result.ledger.documents_agree):
        raise ReplayError(f"the ledger of {account} is out of balance", result.job.error or "")


def status(account: Account, as_json: AsJson = False) -> None:
    """Show the account's job: status, progress, and where its rows have ended so far."""
    encode_account(account)
    with Opened() as database:
        job = JobStore(database).latest(account)
    summary = {"company_sso_id": account, "status": "not_started"} if job is None else _job_summary(job)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    table = Table(show_header=False)
    for name, value in summary.items():
        shown = {key: part for key, part in value.items() if part not in NOTHING} if isinstance(value, dict) else value
        if shown not in NOTHING:
            table.add_row(name, escape(json.dumps(shown) if isinstance(shown, dict) else str(shown)))
    Console().print(table)


def _job_summary(job: Job) -> dict[str, Any]:
    enriched = enrichments.view_of(job.enrichment)
    return {
        "job_id": job.job_id,
        "company_sso_id": job.company_sso_id,
        "status": job.status.value,
        "run": job.run,
        **{name: _plain(value) for name, value in counts_of(job).as_dict().items()},
        "failure_bound": job.failure_bound,
        "rollback": None if job.rollback is None else {name: job.rollback[name] for name in ("removed", "remaining")},
        "enrichment": enriched.model_dump(mode="json") if enriched else None,
        "http_documents": dict(job.http_documents) if job.http_documents else None,
        "started_at": job.started_at.isoformat(),
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        "error": job.error,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it."""
    return value.isoformat() if isinstance(value, datetime) else value


def produce(account: Account) -> None:
    """Run the snapshot of the account's job in progress; it resumes from its saved cursor."""
    encode_account(account)
    _join(account, "producer")


def process(account: Account = "", live: Live = False, feed: Feed = LIVE_FEED) -> None:
    """Run one more processor for the account's job in progress, or for a live feed; it joins the consumer group."""
    _join(account, "processors", feed if live else "")


def sink(account: Account = "", live: Live = False, feed: Feed = LIVE_FEED) -> None:
    """Run one more sink for the account's job in progress, or for a live feed; it joins the consumer group."""
    _join(account, "sink", feed if live else "")


def _join(account: str, module: str, feed: str = "") -> None:
    """Become a worker of the account's job in progress, or of a live feed."""
    from ops.runner.processes import child_environment, python_module  # with the libraries of logs: not for a status

    if bool(account) == bool(feed):
        raise BadInputError("--account or --live", "give one of them")
    connections = host.connections()
    if feed:
        from ops.feed.feed import join

        join(module, feed, connections)
    with Opened(connections) as database:
        job = JobStore(database).latest(account)
    if job is None or job.status is not JobStatus.IN_PROGRESS or not job.begin_offsets:
        state = "not started" if job is None else job.status.value
        raise BadInputError(f"no job of {account} is in progress ({state})", f"crm-replay run --account {account}")
    addresses = connections.environment()
    # It ends with the run: the next one sets its groups' offsets, and must find them without members.
    environment = child_environment(
        **addresses, CRM_REPLAY_JOB=job.replay_job().model_dump_json(), CRM_REPLAY_EXIT_AT_END="true"
    )
    command = python_module(module)
    os.execve(command[0], command, environment)  # noqa: S606 - our own module takes this process's place
