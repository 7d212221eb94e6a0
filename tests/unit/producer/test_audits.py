import pytest

from producer.audits import PAGE_BYTES_MAX, first_line, next_page_rows, where


def test_pages_of_large_rows_get_shorter_and_grow_back() -> None:
    rows = 500
    rows = next_page_rows(rows, 500, PAGE_BYTES_MAX + 1)
    assert rows == 125
    assert next_page_rows(rows, 500, PAGE_BYTES_MAX // 2) == 125
    assert next_page_rows(rows, 500, 1000) == 250
    assert next_page_rows(500, 500, 1000) == 500
    assert next_page_rows(1, 500, PAGE_BYTES_MAX * 9) == 1


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:secret@db.example:6432/crm", "PostgreSQL database crm at db.example:6432"),
        ("host=h password=secret", "PostgreSQL database default at h:5432"),
        ("no dsn at all", "PostgreSQL"),
    ],
)
def test_a_dsn_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert where(dsn) == shown


def test_an_errors_first_line_is_what_is_shown() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
