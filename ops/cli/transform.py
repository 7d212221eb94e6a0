"""`crm-replay transform`: audit rows from a file through the rules, one JSON line for each. It needs no server.

The processors' own Transformer, with lookups from files: for inspecting rows, and for tests.
"""

import sys
from typing import Annotated, Any

import orjson
import typer

from ops.checks.file_rows import FileLookups, printable, read_contacts, read_events, read_users
from processors.encoding import documents
from processors.encoding.transform import Transformed, Transformer
from processors.rules.decide import Lookups, Refused, Skip
from schemas.records import AuditEvent
from schemas.source import mapping as source_mapping
from schemas.vocabulary import DeadLetterCause


def transform_rows(
    rows: Annotated[str, typer.Option(help="audit rows, JSON Lines as in ops/local/sample; - is standard input")],
    mapping: Annotated[str, typer.Option(help="source mapping file; without it, the sample CRM's")] = "",
    contacts: Annotated[
        str,
        typer.Option(
            help='lines of {"crm_person_id", "customer_id", "created_at"}; without it a person is contact-<person id>'
        ),
    ] = "",
    users: Annotated[
        str, typer.Option(help="CRM users, lines as in users.jsonl; each active one has the SSO id sso-<id>")
    ] = "",
    company: Annotated[str, typer.Option(help="the account's company_sso_id")] = "company",
) -> None:
    """Show what audit rows become: {"id", "outcome": "log" | "skip" | "dead_letter", "reason"?, "document"?} each."""
    rules = source_mapping.load(mapping or None)
    transformer = Transformer(rules, company)
    lookups = FileLookups(company, read_contacts(contacts, company) if contacts else None, read_users(users))
    out = sys.stdout.buffer
    for event in read_events(rows):
        out.write(outcome_line(rules.named_now(event), transformer, lookups))
    out.flush()


def outcome_line(event: AuditEvent, transformer: Transformer, lookups: Lookups) -> bytes:
    """Return one row's outcome as a line of JSON."""
    outcome: dict[str, Any] = {"id": event.audit_id}
    result = transformer.transform(event, lookups)
    if isinstance(result, Transformed):
        encoded = documents.encode(result.document)
        if documents.is_too_large(encoded):
            detail = f"{len(encoded)} bytes of BSON, MongoDB takes {documents.DOCUMENT_BYTES_MAX}"
            result = Refused(DeadLetterCause.DOCUMENT_TOO_LARGE, detail)
    if isinstance(result, Transformed):
        outcome |= {"outcome": "log", "document": printable(documents.storable(result.document))}
    elif isinstance(result, Skip):
        outcome |= {"outcome": "skip", "reason": str(result.reason)}
    else:
        outcome |= {"outcome": "dead_letter", "reason": str(result.cause), "detail": result.detail}
    return orjson.dumps(outcome, option=orjson.OPT_APPEND_NEWLINE)
