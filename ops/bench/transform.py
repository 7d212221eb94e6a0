"""`crm-replay bench --stage transform`: how fast the rules alone are, on one core and without a server.

What is measured is what the processors run for a row: from the event's bytes to its outcome's. Where the core is not
compiled, that is the plain way, which every row takes; the share is of those that take it where the core is compiled.

Rates are per second of CPU time of this process, so that other load on the machine does not distort them.
"""

import json
import time
from collections.abc import Sequence
from importlib.resources import files

from ops.checks.file_rows import NO_WATERMARK, FileLookups, event_of, read_users
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from schemas.codec import Codec
from schemas.process.registry import codec_for
from schemas.records import ActivityLog, AuditEvent, Contact, User
from schemas.source import mapping
from schemas.source.person import person_candidates

COMPANY = "bench"
TYPICAL_ROWS = 5_000  # all different, so that no cache holds them all


def run(seconds: float) -> dict[str, float]:
    """Return rows a second of each mix, and which share of the rows took the plain way; takes about `seconds`."""
    users = read_users(str(files("ops.local").joinpath("sample/users.jsonl")))
    found: dict[str, float] = {}
    mixes = {
        "typical_small_updates": typical_updates(TYPICAL_ROWS),
        "yaml_fixture_mix": sample_events("audits_yaml.jsonl", False),
        "jsonb_mix": sample_events("audits_jsonb.jsonl", True),
    }
    for name, events in mixes.items():
        rate, slow_share = _measure(events, users, seconds / len(mixes))
        found[f"{name}_rows_per_s"] = round(rate)
        found[f"{name}_slow_path_share"] = round(slow_share, 4)
    return found


def sample_events(name: str, is_json: bool) -> list[AuditEvent]:
    """Return the rows of a file of the sample CRM as events."""
    text = files("ops.local").joinpath(f"sample/{name}").read_text("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [event_of(row, f"{name}, line {n}")._replace(changes_are_json=is_json) for n, row in enumerate(rows, 1)]


def typical_updates(count: int) -> list[AuditEvent]:
    """Return small updates as a CRM writes most: one to three columns, a comment that names the person, a user."""
    shapes = (
        ("Crm::Deal", "---\ncrm_stage_id:\n- {a}\n- {b}\nprobability:\n- 0.35\n- 0.6\n"),
        ("Crm::Person", "---\nlead_score:\n- {a}\n- {b}\n"),
        ("Crm::Person", "---\ntelephone:\n- '0812-{a:04d}-{b}'\n- \"+62812{b}{a}\"\njob_title:\n-\n- Manager {a}\n"),
        ("Crm::Task", "---\ncrm_task_status_id:\n- 1\n- 2\n"),
        (
            "Crm::Company",
            "---\nname:\n- PT Maju {a}\n- PT Maju Jaya {b}\nemployees:\n- {a}\n- {b}\nwebsite:\n-\n- https://{a}.example\n",
        ),
        ("Crm::Ticket", "---\npriority:\n- 0\n- {a}\nchannel:\n- wa\n- email\n"),
    )
    events = []
    for n in range(count):
        type_name, changes = shapes[n % len(shapes)]
        person_id = 50_000 + n % 997
        events.append(
            AuditEvent(
                audit_id=2**31 + n,
                id_range=0,
                created_at=1_700_000_000_000_000 + n * 1_234_567,
                auditable_type=type_name,
                auditable_id=person_id if type_name == "Crm::Person" else 7_000 + n % 1_009,
                associated_type="",
                associated_id=0,
                user_type="User",
                user_id=11 + n % 3,
                username="",
                action="update",
                audited_changes=changes.format(a=n % 9_001, b=n % 7_919 + 1),
                changes_are_json=False,
                version=2 + n % 40,
                comment=f'{{"crm_person_id":{person_id}}}',
                request_uuid=f"4aad163f-1ac6-4b05-a7b1-{n:012d}",
            )
        )
    return events


def _measure(events: Sequence[AuditEvent], users: dict[int, User], seconds: float) -> tuple[float, float]:
    rules, codec = mapping.load(None), codec_for("")
    persons = {person_id for event in events for person_id in person_candidates(event, rules.person)}
    contacts = {person_id: Contact(COMPANY, person_id, f"customer-{person_id}", NO_WATERMARK) for person_id in persons}
    lookups = FileLookups(COMPANY, contacts, users)
    values = [codec.encode(event) for event in events]
    rows = RowEncoder(Transformer(rules, COMPANY), lookups, codec)
    done = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds:
        _encode(rows, codec, values)
        done += len(values)
    always_fast = RowEncoder(Transformer(rules, COMPANY), lookups, codec, fast=True)
    return done / spent, _encode(always_fast, codec, values) / len(values)


def _encode(rows: RowEncoder, codec: Codec, values: Sequence[bytes]) -> int:
    """Make the outcomes as the processors do, and return how many rows took the plain way."""
    by_plain_way = 0
    for offset, value in enumerate(values):
        row = rows.row(value)
        if row is not None and rows.outcome(row, offset) is not None:
            continue
        by_plain_way += 1
        result = rows.plain(codec.decode_as(AuditEvent, value))
        if isinstance(result, Transformed):
            codec.encode(ActivityLog(offset, 0, offset, 0, documents.encode(result.document)))
    return by_plain_way
