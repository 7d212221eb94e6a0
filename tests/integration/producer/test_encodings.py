"""Databases whose bytes are not all text: a row that cannot be decoded costs that row, and no other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from producer.audits import AuditReader, Limits
from producer.messages import Page
from schemas.codec import Codec
from schemas.records import AuditEvent
from tests.fixtures.services import postgres_database
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob
from tests.integration.producer.crm import source_of

pytestmark = pytest.mark.services

MakeDatabase = Callable[[str], str]
LIMITS = Limits(row_bytes_max=200_000)


@pytest.fixture
def make_database(postgres_dsn: str) -> Iterator[MakeDatabase]:
    """Return `make(encoding) -> dsn` of a database with an empty audits table."""
    with ExitStack() as stack:

        def make(encoding: str) -> str:
            options = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            dsn = stack.enter_context(postgres_database(postgres_dsn, options))
            crm.make_audits(dsn)
            return dsn

        yield make


def put(dsn: str, id_: int, column: str, text: bytes) -> None:
    """Put bytes into a row's column as they are."""
    with psycopg.connect(dsn) as db:
        db.execute("SET client_encoding = 'SQL_ASCII'")
        literal = "".join(f"\\{byte:03o}" for byte in text)
        query = f"UPDATE audits SET {column} = E'{literal}' WHERE id = {id_}"
        db.execute(query.encode())


def fill(dsn: str, bad: bytes, good: bytes) -> None:
    """Ten rows: 3 and 7 have bytes that are no text, 5 has letters beyond ASCII."""
    crm.add_audits(dsn, range(1, 11))
    put(dsn, 3, "audited_changes", b"---\nname:\n- a\n- " + bad + b"\n")
    put(dsn, 5, "comment", good)
    put(dsn, 7, "username", b"x" + bad)


ENCODINGS = [
    ("SQL_ASCII", b"J\xf6rg", "Jörg".encode()),
    ("WIN1252", b"J\x81rg", b"J\xf6rg"),
    ("EUC_JP", b"\xa9\xa1", b"\xc6\xfc"),
]


@pytest.mark.parametrize("late", [False, True], ids=["page", "gap-page"])
@pytest.mark.parametrize("look_for_gaps", [False, True], ids=["", "gaps"])
@pytest.mark.parametrize(("encoding", "bad", "good"), ENCODINGS, ids=[each[0] for each in ENCODINGS])
def test_a_row_that_is_no_text_is_a_defect_and_the_others_are_whole(
    make_database: MakeDatabase, encoding: str, bad: bytes, good: bytes, look_for_gaps: bool, late: bool
) -> None:
    dsn = make_database(encoding)
    fill(dsn, bad, good)
    with closing(AuditReader(dsn, source_of(dsn), crm.CUTOFF, LIMITS)) as reader:
        page = _read(reader, look_for_gaps, late)
        again = _read(reader, look_for_gaps, late)
        assert reader.fingerprint(0, 10) in (None, reader.fingerprint(0, 10))
    assert page == again
    events = {event.audit_id: event for event in page.events}
    assert list(events) == list(range(1, 11))
    assert {id_: defect.cause for id_, defect in page.defects.items()} == dict.fromkeys((3, 7), "undecodable_record")
    assert page.defects[3].detail == f"the row has bytes that are no text in the database's encoding, {encoding}"
    assert "\ufffd" in events[3].audited_changes
    assert events[5].comment == {"EUC_JP": "日"}.get(encoding, "Jörg")
    assert events[1].audited_changes == "---\nname:\n- a\n- b1\n"


def _read(reader: AuditReader, look_for_gaps: bool, late: bool) -> Page:
    if late:
        return reader.late_page_after(0, [(1, 10)], 0)
    return reader.page_after(0, 10, 0, (), look_for_gaps=look_for_gaps)


def test_a_page_without_such_rows_is_read_as_ever(make_database: MakeDatabase) -> None:
    dsn = make_database("LATIN1")
    crm.add_audits(dsn, range(1, 4))
    put(dsn, 2, "comment", b"J\xf6rg")
    with closing(AuditReader(dsn, source_of(dsn), crm.CUTOFF, LIMITS)) as reader:
        page = _read(reader, False, False)
    assert ([event.comment for event in page.events], page.defects) == (["", "Jörg", ""], {})


@pytest.mark.parametrize("size", [100_000, 300_000], ids=["fits-the-topic", "does-not"])
def test_a_large_row_that_is_no_text_is_a_defect_too(make_database: MakeDatabase, size: int) -> None:
    dsn = make_database("SQL_ASCII")
    crm.add_audits(dsn, range(1, 4))
    put(dsn, 2, "audited_changes", b"\xff" + b"x" * size)
    with closing(AuditReader(dsn, source_of(dsn), crm.CUTOFF, LIMITS)) as reader:
        page = _read(reader, False, False)
    causes = {id_: defect.cause for id_, defect in page.defects.items()}
    assert causes == {2: "row_too_large" if size > 200_000 else "undecodable_record"}
    assert [event.audit_id for event in page.events] == [1, 2, 3]


def test_such_a_row_is_a_dead_letter_and_the_run_goes_to_its_end(
    make_job: MakeJob, make_database: MakeDatabase, mongo_database: Any
) -> None:
    here = make_job(top_audit_id=10)
    here = replace(here, dsn=make_database("SQL_ASCII"))
    fill(here.dsn, b"J\xf6rg", "Jörg".encode())
    code, said = here.run()
    assert code == 0, said
    assert sorted(event.audit_id for event in here.events()) == [1, 2, 4, 5, 6, 8, 9, 10]
    letters = {letter.audit_id: letter for letter in here.dead_letters()}
    assert {id_: letter.cause for id_, letter in letters.items()} == dict.fromkeys((3, 7), "undecodable_record")
    assert isinstance(Codec().decode(letters[3].payload), AuditEvent)
