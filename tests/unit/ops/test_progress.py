"""What an operator reads while a run goes on and when it has ended."""

import io

import pytest
from rich.console import Console

from ops.jobs.jobs import Ledger
from ops.progress import PLAIN_LINE_EVERY_S, PlainView, RateMeter, TerminalView, eta_text, print_ledger, view_for


def test_the_rate_is_that_of_the_last_seconds_and_falls_to_nothing_in_a_stall():
    meter = RateMeter()
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
def test_the_time_left_is_readable(left, rate, text):
    assert eta_text(left, rate) == text


def test_plain_lines_go_to_standard_error_now_and_then(capsys, monkeypatch):
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


def test_the_bar_is_for_terminals_only():
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), TerminalView)
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=False)), PlainView)


def test_the_bar_shows_rows_rate_and_reasons(monkeypatch):
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


def ledger_text(ledger: Ledger) -> str:
    out = io.StringIO()
    print_ledger(Console(file=out, width=100), "acme", ledger, seconds=2.0)
    return out.getvalue()


def test_a_balanced_ledger_says_so_with_every_bin():
    skipped = {"contact_not_found": 60, "post_sync_live_feed": 35}
    ledger = Ledger(1000, 900, skipped, 5, documents=900, late=11, repaired=12, actors_fell_back=13)
    text = ledger_text(ledger)
    for expected in ("1,000", "900", "skipped: contact_not_found", "60", "35", "99.44 %", "balanced", "500 rows/s"):
        assert expected in text
    for expected in ("late rows filled", "11", "failed and repaired since", "12", "actors that fell back", "13"):
        assert expected in text
    assert "OUT OF BALANCE" not in text


def test_a_ledger_out_of_balance_says_by_how_much():
    assert "OUT OF BALANCE by 3" in ledger_text(Ledger(1000, 997, documents=997))


def test_a_ledger_tells_of_types_that_are_not_read_and_leaves_them_out_of_its_sums():
    ledger = Ledger(source_rows=5, migrated=5, documents=5, out_of_scope={"Crm::Widget": 12_345, "": 2, "[red]x[/]": 1})
    text = ledger_text(ledger)
    assert "not in scope, not read: Crm::Widget" in text
    assert "12,345" in text
    assert "(no type)" in text
    assert "[red]x[/]" in text
    assert "balanced" in text


def test_an_account_in_brackets_is_no_markup():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, no_color=True, width=100)
    print_ledger(console, "acme[red]", Ledger(source_rows=0, migrated=0, failed=0, documents=0))
    TerminalView(console).note("taking up the job of acme[red]")
    assert out.getvalue().count("acme[red]") == 2
