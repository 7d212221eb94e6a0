"""Pure: the report as Markdown, as one HTML page with an inline chart, and as JSON."""

from collections.abc import Sequence
from html import escape
from typing import Any

from ops.checks.rollout.model import Day, Line, Rollout, State

TITLES = {
    State.OFF_TRACK: "Off track",
    State.AT_RISK: "At risk",
    State.PAUSED: "Paused",
    State.ON_TRACK: "On track",
    State.BACKLOG: "Backlog",
    State.COMPLETED: "Completed",
}  # in the order of urgency
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 260, 70, 30, 12, 12
COLUMNS = ("account", "state", "rows", "done", "left", "due", "whose turn", "next")


def as_dict(found: Rollout) -> dict[str, Any]:
    """Return the report as JSON takes it."""
    return {
        "at": found.at.isoformat(),
        "accounts": {state.value: found.counts.get(state, 0) for state in State},
        "rows_done": found.rows_done,
        "rows_left": found.rows_left,
        "accounts_uncounted": found.uncounted,
        "forecast": {
            "day": found.forecast.day.isoformat() if found.forecast.day else None,
            "rows_per_day": round(found.forecast.rows_per_day),
            "basis": found.forecast.basis,
        },
        "burn_up": [{"day": day.day.isoformat(), "done": day.done, "known": day.known} for day in found.burn_up],
        "lines": [_line_dict(line) for line in found.lines],
    }


def _line_dict(line: Line) -> dict[str, Any]:
    gate = line.gate
    return {
        "company_sso_id": line.company_sso_id,
        "state": line.state.value,
        "why": line.why,
        "rows_total": line.rows_total,
        "rows_done": line.rows_done,
        "rows_left": line.rows_left,
        "due": line.due.isoformat() if line.due else None,
        "ends_at": line.ends_at.isoformat() if line.ends_at else None,
        "gate": None if gate is None else {"name": gate.name, "turn": gate.turn, "what": gate.what},
    }


def forecast_text(found: Rollout) -> str:
    """Return the forecast in one line."""
    forecast = found.forecast
    uncounted = f"; the rows of {found.uncounted:,} accounts have not been counted yet" if found.uncounted else ""
    if forecast.day is None:
        return f"No forecast: {forecast.basis}{uncounted}."
    if found.rows_left == 0:
        return f"No rows are left: {forecast.basis}{uncounted}."
    return f"Done by {forecast.day} at {forecast.rows_per_day:,.0f} rows a day ({forecast.basis}){uncounted}."


def markdown(found: Rollout) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Rollout of the CRM replay",
        "",
        f"As of {found.at:%Y-%m-%d %H:%M} UTC. {found.rows_done:,} rows done, {found.rows_left:,} left.",
        forecast_text(found),
        "",
        "| state | accounts |",
        "| --- | ---: |",
        *(f"| {title} | {found.counts.get(state, 0):,} |" for state, title in TITLES.items()),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| --- | --- | {' | '.join(['---:'] * 3)} | --- | --- | --- |",
        *(f"| {' | '.join(map(_cell, _cells(line)))} |" for line in _in_order(found.lines)),
    ]
    if found.burn_up:
        lines += ["", "| day | rows done | rows known |", "| --- | ---: | ---: |"]
        lines += [f"| {day.day} | {day.done:,} | {day.known:,} |" for day in found.burn_up]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _cells(line: Line) -> tuple[str, ...]:
    gate = line.gate
    return (
        line.company_sso_id,
        TITLES[line.state] if line.state is State.COMPLETED else f"{TITLES[line.state]}: {line.why}",
        "?" if line.rows_total is None else f"{line.rows_total:,}",
        f"{line.rows_done:,}",
        "?" if line.rows_left is None else f"{line.rows_left:,}",
        str(line.due or ""),
        gate.turn if gate else "",
        gate.what if gate else "",
    )


def _in_order(lines: Sequence[Line]) -> list[Line]:
    order = list(TITLES)
    return sorted(lines, key=lambda line: (order.index(line.state), line.company_sso_id))


STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --line: #d5dbe3; --paper: #ffffff; --done: #1f6feb;
  --known: #8a96a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #a3afbf; --line: #36404d; --paper: #12171e;
  --done: #6cb0ff; --known: #8a96a5; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
p.forecast { font-weight: 600; }
""".strip()


def html(found: Rollout) -> str:
    """Return the report as one self-contained page: no script, no font, no external picture."""
    states = "".join(
        f'<tr><th scope="row">{title}</th><td class="n">{found.counts.get(state, 0):,}</td></tr>'
        for state, title in TITLES.items()
    )
    head = "".join(f'<th scope="col"{_numeric(number)}>{escape(name)}</th>' for number, name in enumerate(COLUMNS))
    rows = "".join(
        "<tr>" + "".join(f"<td{_numeric(at)}>{escape(cell)}</td>" for at, cell in enumerate(_cells(line))) + "</tr>\n"
        for line in _in_order(found.lines)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rollout of the CRM replay</title>
<style>
{STYLE}
</style>
</head>
<body>
<main>
<h1>Rollout of the CRM replay</h1>
<p>As of {found.at:%Y-%m-%d %H:%M} UTC. {found.rows_done:,} rows done, {found.rows_left:,} left.</p>
<p class="forecast">{escape(forecast_text(found))}</p>
<table>
<caption>Accounts by state</caption>
<tbody>{states}</tbody>
</table>
{chart(found.burn_up)}
<div class="wide">
<table>
<caption>Accounts</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}</tbody>
</table>
</div>
</main>
</body>
</html>
"""


def _numeric(column: int) -> str:
    return ' class="n"' if column in (2, 3, 4) else ""


def chart(days: Sequence[Day]) -> str:
    """Return the burn-up as SVG: rows known of as a dashed line, rows done as a full one; "" without a day."""
    if not days:
        return ""
    top_rows = max(1, max(day.known for day in days), max(day.done for day in days))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(number: int, rows: int) -> str:
        x = LEFT + (wide * number / (len(days) - 1) if len(days) > 1 else wide)
        return f"{x:.1f},{TOP + high * (1 - rows / top_rows):.1f}"

    done = " ".join(place(number, day.done) for number, day in enumerate(days))
    known = " ".join(place(number, day.known) for number, day in enumerate(days))
    base, last = TOP + high, days[-1]
    summary = f"From {days[0].day} to {last.day}: {last.done:,} of {last.known:,} known rows are done."
    scale = "".join(
        f'<line x1="{LEFT}" y1="{TOP + high * (1 - part):.1f}" x2="{WIDTH - RIGHT}" y2="{TOP + high * (1 - part):.1f}"'
        f' stroke="var(--line)"/><text x="{LEFT - 6}" y="{TOP + high * (1 - part) + 4:.1f}" text-anchor="end">'
        f"{short(round(top_rows * part))}</text>"
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f"""<svg {size} role="img" aria-label="{escape(summary)}">
<title>Rows done and rows known, by day</title>
{scale}
<polyline points="{known}" fill="none" stroke="var(--known)" stroke-width="2" stroke-dasharray="6 4"/>
<polyline points="{done}" fill="none" stroke="var(--done)" stroke-width="2.5"/>
<text x="{LEFT}" y="{base + 18}">{days[0].day}</text>
<text x="{WIDTH - RIGHT}" y="{base + 18}" text-anchor="end">{last.day}</text>
<text x="{LEFT + 8}" y="{TOP + 14}">full line: rows done; dashed: rows known</text>
</svg>"""


def short(rows: int) -> str:
    """Return a number of rows for an axis: `1.5 M`, `300 k`."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if rows >= size:
            text = f"{rows / size:.1f}".removesuffix(".0")
            return f"{text} {unit}"
    return str(rows)
