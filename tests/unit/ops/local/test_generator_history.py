"""The generated history: always the same, valid, and with the skew and the accidents of a real CRM."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

import pytest

from ops.local.generator import psych
from ops.local.generator.history import HISTORY_BEGIN, HISTORY_END, UNKNOWN_PERSON_ID, History, Plan
from ops.local.generator.pieces import ERAS, pieces_of, sample_updates
from ops.local.generator.plain import PlainHistory
from schemas.source.audited_changes import Columns, read
from tests.support.generator import ESCAPES, Audit, audits, digest
from tests.support.psych import NotOursError, read_back

ROWS = 12_000
DIGEST_OF_3000 = "87a63f8b9656b71283827d714a2e7c8a50cf280b4127dde54852855e37215a72"


@pytest.fixture(scope="module")
def history() -> tuple[History, list[Audit]]:
    made = History(Plan(ROWS))
    return made, list(audits(made))


@pytest.fixture(scope="module")
def rows(history: tuple[History, list[Audit]]) -> list[Audit]:
    return history[1]


def test_a_plan_gives_the_bytes_it_has_always_given() -> None:
    # Raise `tables.VERSION` together with this digest: databases made before are then made anew.
    assert digest(Plan(3_000)) == DIGEST_OF_3000


def test_neither_hash_seed_nor_time_zone_nor_locale_matter() -> None:
    code = (
        "from ops.local.generator.history import Plan\n"
        "from tests.support.generator import digest\n"
        "print(digest(Plan(3000)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == DIGEST_OF_3000


def test_another_seed_gives_other_rows() -> None:
    assert len({digest(Plan(500, seed=seed)) for seed in (1, 2)}) == 2


def test_every_text_is_what_psych_writes(rows: list[Audit]) -> None:
    samples = {
        text for era in ERAS for kind in ("Crm::Person", "Crm::Deal", "Crm::Task") for text in sample_updates(kind, era)
    }
    nils = [era.nil for era in ERAS]
    checked = 0
    for text in {row.changes for row in rows if row.changes is not None}:
        if text in samples or text.startswith("{"):
            continue
        value = read_back(text)
        assert text in {psych.document(value, nil) for nil in nils}
        checked += 1
    assert checked > ROWS / 3


def test_every_piece_is_what_psych_writes() -> None:
    for era in ERAS:
        pieces = pieces_of(era, 1)
        everything = [
            pool for name, pool in vars(pieces).items() if name.endswith(("_tails", "_middles", "_heads", "_bodies"))
        ]
        everything += [
            pool for name, columns in vars(pieces).items() if name.endswith("_columns") for pool, _ in columns
        ]
        assert len(everything) > 30
        for piece in (piece for pool in everything for piece in pool):
            text = "---\n" + re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], piece)
            assert psych.document(read_back(text), era.nil) == text


def test_every_text_can_be_read_by_the_replay(rows: list[Audit]) -> None:
    for text in {row.changes for row in rows if row.changes is not None}:
        columns = read(text, False)
        assert isinstance(columns, Columns), text


def test_whole_json_texts_come_from_the_oldest_rows_only(rows: list[Audit]) -> None:
    json_rows = [row for row in rows if row.changes is not None and row.changes.startswith("{")]
    assert json_rows
    assert max(row.id for row in json_rows) < rows[len(rows) // 6].id
    for row in json_rows:
        assert set(json.loads(row.changes or "")) == {"amount_idr", "lost_reason"}


def test_each_era_writes_as_its_gem_did(rows: list[Audit]) -> None:
    updates = [row for row in rows if row.action == "update" and (row.changes or "").startswith("---")]
    old, middle, new = updates[: len(updates) // 8], updates[len(updates) // 5 : len(updates) // 4], updates[-3000:]
    indifferent = f"--- {psych.HASH_WITH_INDIFFERENT_ACCESS}\n"
    rooted = [row for row in old if (row.changes or "").startswith(indifferent)]
    assert len(rooted) > 0.9 * len(old)  # not: nothing changed, folded rows
    assert not any((row.changes or "").startswith(indifferent) for row in middle + new)
    persons = [row for row in middle if row.auditable_type == "Crm::Person"]
    assert persons
    assert all('portal_token: "[REDACTED]"' in (row.changes or "") for row in persons)
    assert not any(re.search(r"^[a-z_]+: $|^- $", row.changes or "", re.MULTILINE) for row in new)
    assert any(re.search(r"^- $", row.changes or "", re.MULTILINE) for row in old)


def test_secrets_are_in_the_clear_in_the_older_creates_only(rows: list[Audit]) -> None:
    creates = [row.changes or "" for row in rows if row.record[0] == "Crm::Person" and row.action == "create"]
    assert "national_id: 3174-" in creates[0]
    assert 'national_id: "[REDACTED]"' in creates[-1]


def test_the_mixture_is_that_of_a_crm(rows: list[Audit]) -> None:
    actions = Counter(row.action for row in rows)
    assert 0.70 < actions["update"] / ROWS < 0.80
    assert 0.17 < actions["create"] / ROWS < 0.25
    assert 0.02 < actions["destroy"] / ROWS < 0.06
    assert 0 < actions["merge"] / ROWS < 0.005
    types = Counter(row.auditable_type for row in rows)
    assert types.keys() >= {
        "Crm::Person", "Crm::Company", "Crm::Deal", "Crm::Task", "Crm::Ticket", "Crm::Note", "Crm::Product", "User",
        "ApiClient", "Crm::DealPerson", "Crm::DealCompany", "Crm::CompanyPerson", "Crm::TaskDeal", "Crm::TaskPerson",
        "Crm::TicketPerson", "Crm::TicketCompany", "Crm::TicketDeal",
    }  # fmt: skip
    assert types.most_common(1)[0][0] == "Crm::Person"
    assert any("crm_stage_id:\n- 32\n- 39\n" in (row.changes or "") for row in rows)
    assert any("crm_task_status_id:\n- 2\n- 5\n" in (row.changes or "") for row in rows)
    assert any(re.search(r"crm_ticket_status_id:\n- \d\n- 4\n", row.changes or "") for row in rows)


def test_a_row_has_about_600_bytes_as_json(rows: list[Audit]) -> None:
    keys = "id auditable_id auditable_type associated_id associated_type user_id user_type username action audited_changes version comment remote_address request_uuid created_at account_id"  # noqa: E501
    names = keys.split()
    size = sum(
        len(
            json.dumps(
                dict(zip(names, vars(row).values(), strict=True)), separators=(",", ":"), ensure_ascii=False
            ).encode()
        )
        for row in rows
    )
    assert 550 < size / len(rows) < 650


def test_the_first_account_has_half_and_every_account_something(history: tuple[History, list[Audit]]) -> None:
    made, rows = history
    counts = Counter(row.account_id for row in rows)
    assert counts == {account.number: account.audits for account in made.accounts}
    assert 0.45 < counts[1] / ROWS < 0.55
    assert [n for n, _ in counts.most_common()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("accounts", "rows"), [(1, 50), (2, 400), (200, 4_000)])
def test_any_number_of_accounts_works(accounts: int, rows: int) -> None:
    made = History(Plan(rows, accounts))
    assert sum(n for _, n in made.chunks()) == rows
    assert sum(account.audits for account in made.accounts) == rows
    assert len({account.company_sso_id for account in made.accounts}) == accounts


def test_ids_rise_and_have_holes(rows: list[Audit]) -> None:
    ids = [row.id for row in rows]
    steps = Counter(b - a for a, b in pairwise(ids))
    assert min(steps) == 1
    assert 0.001 < sum(n for step, n in steps.items() if step > 1) / ROWS < 0.02


def test_times_span_the_years_and_are_slightly_out_of_order(rows: list[Audit]) -> None:
    times = [datetime.fromisoformat(row.created_at + "+00:00") for row in rows]
    assert min(times) >= HISTORY_BEGIN
    assert max(times) < HISTORY_END
    assert len(set(times)) > 0.99 * ROWS
    assert (max(times) - min(times)).days > 0.9 * (HISTORY_END - HISTORY_BEGIN).days
    behind = sum(a > b for a, b in pairwise(times))
    assert 0 < behind / ROWS < 0.05


def test_rows_of_one_request_share_what_a_request_has(rows: list[Audit]) -> None:
    requests = defaultdict(list)
    for row in rows:
        requests[row.request_uuid].append(row)
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", row.request_uuid)
    assert max(map(len, requests.values())) == 12
    for together in requests.values():
        assert len({(r.account_id, r.user_id, r.user_type, r.username, r.remote_address) for r in together}) == 1


def test_versions_of_a_record_rise(rows: list[Audit]) -> None:
    seen: dict[tuple[str, int], int] = {}
    for row in rows:
        if row.auditable_type.startswith("Crm::") and row.auditable_type != "Crm::Product":
            assert row.version > seen.get(row.record, 0), row
            seen[row.record] = row.version


def test_nothing_happens_to_a_record_after_its_end(rows: list[Audit]) -> None:
    gone: set[tuple[str, int]] = set()
    for row in rows:
        assert row.record not in gone
        if row.action == "destroy":
            gone.add(row.record)
    assert {kind for kind, _ in gone} >= {"Crm::Person", "Crm::Deal", "Crm::Task", "Crm::Ticket", "Crm::Note"}


def named_persons(row: Audit) -> Iterator[int]:
    if row.comment:
        yield from map(int, re.findall(r'"crm_person_id":"?(\d+)', row.comment))
    yield from map(int, re.findall(r"^crm_person_id: (\d+)$", row.changes or "", re.MULTILINE))
    if pair := re.search(r"^crm_person_id:\n- (\d+)\n- (\d+)$", row.changes or "", re.MULTILINE):
        yield from map(int, pair.groups())
    if row.auditable_type == "Crm::Person":
        yield row.auditable_id
    if row.associated_type == "Crm::Person":
        assert row.associated_id is not None
        yield row.associated_id


def test_no_row_names_a_person_of_another_account(history: tuple[History, list[Audit]]) -> None:
    made, rows = history
    owners = dict(zip(made.people.ids, made.people.accounts, strict=True))
    named = 0
    for row in rows:
        for person in named_persons(row):
            if person != UNKNOWN_PERSON_ID:
                assert owners[person] == row.account_id
                named += 1
    assert named > ROWS


def test_persons_are_skewed(rows: list[Audit]) -> None:
    persons = Counter(next(named_persons(row), 0) for row in rows if row.account_id == 1)
    del persons[0]
    (_, busiest), *_ = persons.most_common(1)
    assert busiest > 8 * sum(persons.values()) / len(persons)


def test_comments_name_the_person_in_most_rows_and_fail_in_a_few(rows: list[Audit]) -> None:
    forms: Counter[str] = Counter()
    for row in rows:
        if row.comment is None:
            forms["none"] += 1
            continue
        try:
            comment = json.loads(row.comment)
            forms["json" if isinstance(comment, dict) and comment.get("crm_person_id") else "no person"] += 1
        except ValueError:
            forms["broken"] += 1
    assert 0.8 < forms["json"] / ROWS < 0.93
    assert 0.07 < forms["none"] / ROWS < 0.2
    assert 0 < forms["broken"] / ROWS < 0.03
    assert forms["no person"] > 0


def test_all_kinds_of_actors_act(history: tuple[History, list[Audit]]) -> None:
    made, rows = history
    users = {user.id: user for user in made.users}
    kinds: Counter[str] = Counter()
    for row in rows:
        if row.user_type == "User":
            user = users.get(row.user_id or 0)
            kinds["no row" if user is None else "deleted" if user.deleted else "active"] += 1
            assert user is None or user.account == row.account_id
        else:
            kinds[row.user_type or ("job" if row.username else "system")] += 1
    assert kinds.keys() == {"active", "deleted", "no row", "ApiClient", "job", "system"}
    assert 0.6 < kinds["active"] / ROWS < 0.8


def test_rare_forms_of_the_real_gem_are_among_the_rows(rows: list[Audit]) -> None:
    samples = {
        text for era in ERAS for kind in ("Crm::Person", "Crm::Deal", "Crm::Task") for text in sample_updates(kind, era)
    }
    found = [row.changes for row in rows if row.changes in samples]
    assert len(found) > 10
    refused = 0
    for text in samples:
        try:
            read_back(text)
        except NotOursError:
            refused += 1
    assert refused > 10  # Ruby classes that the generator itself never writes


def test_folded_rows_have_bare_values_and_a_comment_that_is_no_json(rows: list[Audit]) -> None:
    folded = [row for row in rows if (row.comment or "").endswith("the result of multiple audits being combined.")]
    assert folded
    for row in folded:
        columns = read(row.changes or "", False)
        assert isinstance(columns, Columns)
        assert isinstance(columns.values["crm_person_id"], int)
        assert isinstance(columns.values["crm_ticket_status_id"], list)
        with pytest.raises(ValueError, match="Extra data"):
            json.loads(row.comment or "")


def test_flat_rows_are_flat() -> None:
    rows = list(audits(PlainHistory(Plan(4_000, shape="peer"))))
    actions = Counter(row.action for row in rows)
    assert actions.keys() == {"update", "create"}
    assert 0.2 < actions["create"] / len(rows) < 0.3
    for row in rows:
        assert row.changes is not None
        assert psych.document(read_back(row.changes)) == row.changes
        assert "!ruby" not in row.changes
        assert json.loads(row.comment or "").keys() == {"crm_person_id"}


def test_a_merged_person_leads_to_one_who_is_still_there() -> None:
    made = History(Plan(60_000, accounts=1))
    for _ in made.chunks():
        pass
    living = {made.people.ids[place] for place, name in enumerate(made.people.names) if name != 0xFFFF}
    survivors = [made.survivor(place) for place in made.merged]
    assert survivors
    assert all(made.people.ids[place] in living for place in survivors if place is not None)
