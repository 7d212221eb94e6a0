import pytest

from producer.audits import PAGE_BYTES_MAX, QUICK_PAGES_MAX, WINDOW_MIN, Window, first_line, next_page_rows, where
from producer.session import settings_in
from schemas.errors import BadInputError


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


def test_a_window_that_was_cut_grows_again_once_pages_are_quick() -> None:
    window = Window(50_000)
    for ids in (12_500, 3_125, WINDOW_MIN):
        assert window.too_slow()
        assert window.ids == ids
    assert not window.too_slow(), "scanning fewer would not help"
    sizes = set()
    for _ in range(1_000):
        window.answered(0.1, 60.0)
        sizes.add(window.ids)
    assert sizes == {1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 50_000}


def test_a_window_stays_where_twice_as_many_ids_would_come_near_the_limit() -> None:
    window = Window(50_000)
    window.too_slow()
    for _ in range(100):
        window.answered(16.0, 60.0)
    assert window.ids == 12_500


def test_a_window_is_tried_less_often_the_more_often_it_was_too_large() -> None:
    window = Window(4_000)
    pages: list[int] = []
    for _ in range(10):
        window.too_slow()
        pages.append(0)
        while window.ids < window.ids_max:
            window.answered(0.1, 60.0)
            pages[-1] += 1
    assert pages == [2 * min(QUICK_PAGES_MAX, 2**number) for number in range(1, 11)]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-c a=1 -c  b=x=y", {"a": "1", "b": "x=y"}),
        (r"-csearch_path=a\ b,c --work-mem=5MB -c d=\\", {"search_path": "a b,c", "work_mem": "5MB", "d": "\\"}),
    ],
)
def test_the_settings_in_an_address_are_read_as_the_server_reads_them(options: str, settings: dict[str, str]) -> None:
    assert settings_in(options) == settings


@pytest.mark.parametrize("options", ["-e", "-c", "-c a", "x=1 -- y", "-B 16"])
def test_what_is_no_setting_is_refused(options: str) -> None:
    with pytest.raises(BadInputError, match="is no setting"):
        settings_in(options)
