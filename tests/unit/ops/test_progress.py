"""What an operator reads while a run goes on and when it has ended."""

import io

import pytest
from rich.console import Console

from ops.progress import PLAIN_LINE_EVERY_S, PlainView, TerminalView, eta_text, generating, view_for
from ops.rate import RateMeter


def test_the_rate_is_that_of_the_last_seconds_and_falls_to_nothing_in_a_stall() -> None:
    meter = RateMeter(10.0)
    assert meter.add(0.0, 0) == 0.0
    for second in range(1, 31):
        rate = meter.add(float(second), second * 1000)
    assert rate == pytest.approx(1000.0)
    for second in range(31, 52):
        rate = meter.add(float(second), 30_000)
    assert rate == 0.0


@pytest.mark.parametrize(
    ("left", "rate", "text"), [(100, 0.0, "-"), (90, 1.0, "0:01:30"), (36_610, 10.0, "1:01:01"), (0, 5.0, "0:00:00")]
)
def test_the_time_left_is_readable(left: int, rate: float, text: str) -> None:
    assert eta_text(left, rate) == text


def test_plain_lines_go_to_standard_error_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("ops.progress.time.monotonic", lambda: now[0])
    view = PlainView()
    view.progress(0, 1000, {}, 0)
    now[0] += PLAIN_LINE_EVERY_S
    view.progress(500, 1000, {"contact_not_found": 7}, 2)
    now[0] += 0.1
    view.progress(501, 1000, {}, 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "500 of 1,000 rows, 100/s, ETA 0:00:05, contact_not_found 7, failed 2\n"


def test_the_bar_is_for_terminals_only() -> None:
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), TerminalView)
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=False)), PlainView)


def test_the_bar_shows_rows_rate_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    view = TerminalView(Console(file=out, force_terminal=True, width=160))
    view.note("references published")
    view.note("contact [/a] of [bold] on topic[3]")
    view.progress(10, 100, {"contact_not_found": 3}, 1)
    view._bar.refresh()
    view.close()
    shown = out.getvalue()
    assert "references published" in shown
    assert "contact [/a] of [bold] on topic[3]" in shown
    assert "10/100" in shown
    assert "contact_not_found 3, failed 1" in shown


def test_brackets_in_a_note_are_no_markup() -> None:
    out = io.StringIO()
    TerminalView(Console(file=out, force_terminal=True, no_color=True, width=100)).note("resuming acme[red]")
    assert "acme[red]" in out.getvalue()


def test_generated_rows_are_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((0.0, 1.0, 6.0, 7.0))
    monkeypatch.setattr("ops.progress.time.monotonic", lambda: next(now))
    with generating(400) as report:
        for done in (100, 200, 300):
            report(done, 400)
    assert capsys.readouterr().err == "generated 200 of 400 rows, 33 rows/s, 6 s left\n"
