"""`crm-replay demo`: two CRMs on real servers, replayed from an empty database to the ledger."""

import json
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Annotated

import psycopg
import typer
from rich.console import Console

from ops.cli import host
from ops.cli.ledger import print_ledger
from ops.jobs import enrichments, migrations
from ops.local import sample_crm, sandbox
from ops.local.directory_server import DirectoryServer
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.local.sample.contacts import seed_contacts
from ops.progress import generating, view_for
from ops.runner.options import RunOptions, RunResult
from ops.runner.replay import run_account
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, connect

NAME = "crm_replay_demo"


def demo(
    audits: Annotated[int, typer.Option(min=1, help="Audits of the generated CRM, over all its accounts.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same CRM.")] = 1,
) -> None:
    """Load two CRMs into real servers, replay them, show the results, and stop the servers."""
    show(Console(), audits=audits, seed=seed)


def show(console: Console, *, audits: int, seed: int) -> None:
    """Load the sample CRM and a generated one, replay both sample accounts and the largest generated one, show it all.

    Then replay a sample account again: no document may be inserted. Raises ReplayError for a ledger out of balance.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, style="dim")

    began = time.monotonic()
    with sandbox.servers(say) as servers:
        connections = sandbox.own_databases(servers, NAME)
        dsn = connections.crm_audit_database_url
        sample = sample_crm.load_sample(dsn)
        say(f"sample CRM: {sample.audits_yaml} audits with YAML changes, {sample.audits_jsonb} with jsonb")
        with generating(audits) as report:
            generated = generate_crm(dsn, Plan(audits, seed=seed), progress=report).accounts
        say("generated CRM: " + ", ".join(f"{name} {rows:,}" for name, rows in generated.items()))
        database = connect(connections, app_name="crm-replay-demo")
        with closing(database.client), DirectoryServer(_emails(dsn)) as directory:
            if not connections.user_directory_url:  # a development directory: each active user has an SSO id
                connections = connections.model_copy(update={"user_directory_url": directory.url})
            migrations.up(database)
            seed_contacts(database, dsn)
            largest = max(generated, key=lambda account: generated[account])
            results = [
                _replay(console, account, mapping, connections)
                for account, mapping in (
                    (sample_crm.SAMPLE_YAML, str(sample_crm.mapping_path(sample_crm.SAMPLE_YAML))),
                    (sample_crm.SAMPLE_JSONB, str(sample_crm.mapping_path(sample_crm.SAMPLE_JSONB))),
                    (largest, GENERATED_MAPPING),
                )
            ]
            _show_documents(console, database, largest)
            console.print("\nThe same account again: all documents exist already.", style="bold")
            mapping = str(sample_crm.mapping_path(sample_crm.SAMPLE_YAML))
            again = _replay(console, sample_crm.SAMPLE_YAML, mapping, connections)
    _judge(results, again)
    rows = sum(result.ledger.source_rows for result in results)
    console.print(
        f"\n[bold green]The demo went well[/]: {rows:,} audits of three accounts, "
        f"each in exactly one bin; the second run inserted {again.ledger.migrated}. "
        f"{time.monotonic() - began:.0f} s in all, no process is left running.",
        highlight=False,
    )
    console.print(f"Data and logs: {host.home()}. Look around: crm-replay services up", highlight=False)


def _emails(dsn: str) -> list[str]:
    """Return the emails of the users of both CRMs."""
    with psycopg.connect(dsn) as db:
        return [row[0] for row in db.execute("SELECT email FROM public.users UNION SELECT email FROM crm.users")]


def _replay(console: Console, account: str, mapping: str, connections: Connections) -> RunResult:
    console.print(f"\n[bold]Replaying {account}[/]", highlight=False)
    view = view_for(console)
    try:
        result = run_account(account, RunOptions(mapping_path=mapping, home=host.home()), connections, view)
    finally:
        view.close()
    print_ledger(console, account, result.ledger, seconds=result.seconds)
    summary = enrichments.in_words(enrichments.view_of(result.job.enrichment), account)
    console.print(summary, highlight=False, markup=False)
    return result


def _show_documents(console: Console, database: Database, account: str) -> None:
    console.print(f"\nA few of the activity logs of {account}:", style="bold", highlight=False)
    for category in ("contact", "deal", "task"):
        found = database[ACTIVITY_LOGS].find_one({"company_sso_id": account, "category": category})
        if found is not None:
            console.print_json(json.dumps(found, default=str), indent=2)


def _judge(results: Iterable[RunResult], again: RunResult) -> None:
    for result in (*results, again):
        if not (result.ledger.balanced and result.ledger.documents_agree):
            raise ReplayError(f"the ledger of {result.job.company_sso_id} is out of balance", result.job.error or "")
    if again.ledger.migrated:
        raise ReplayError(f"the second run inserted {again.ledger.migrated} documents", "it must insert none")
