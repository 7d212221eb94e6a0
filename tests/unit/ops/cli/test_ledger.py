"""The ledger as an operator reads it when a run has ended."""

import io

from rich.console import Console

from ops.cli.ledger import print_ledger
from ops.jobs.jobs import Ledger


def ledger_text(ledger: Ledger) -> str:
    out = io.StringIO()
    print_ledger(Console(file=out, width=100), "acme", ledger, seconds=2.0)
    return out.getvalue()


def test_a_balanced_ledger_says_so_with_every_bin() -> None:
    skipped = {"contact_not_found": 60, "post_sync_live_feed": 35}
    ledger = Ledger(1000, 900, skipped, 5, documents=900, late=11, repaired=12, actors_fell_back=13)
    text = ledger_text(ledger)
    for expected in ("1,000", "900", "skipped: contact_not_found", "60", "35", "99.44 %", "balanced", "500 rows/s"):
        assert expected in text
    for expected in ("late rows filled", "11", "failed and repaired since", "12", "actors that fell back", "13"):
        assert expected in text
    assert "OUT OF BALANCE" not in text


def test_a_ledger_out_of_balance_says_by_how_much() -> None:
    assert "OUT OF BALANCE by 3" in ledger_text(Ledger(1000, 997, documents=997))


def test_a_ledger_tells_of_types_that_are_not_read_and_leaves_them_out_of_its_sums() -> None:
    ledger = Ledger(source_rows=5, migrated=5, documents=5, out_of_scope={"Crm::Widget": 12_345, "": 2, "[red]x[/]": 1})
    text = ledger_text(ledger)
    assert "not in scope, not read: Crm::Widget" in text
    assert "12,345" in text
    assert "(no type)" in text
    assert "[red]x[/]" in text
    assert "balanced" in text


def test_an_account_in_brackets_is_no_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, no_color=True, width=100)
    print_ledger(console, "acme[red]", Ledger(source_rows=0, migrated=0, failed=0, documents=0))
    assert "acme[red]" in out.getvalue()
