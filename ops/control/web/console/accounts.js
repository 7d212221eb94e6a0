// The list of accounts: running, needing attention, and the rest.

import { h, icon, setText } from "./dom.js";
import { count, number, percent, rate, span, UNKNOWN } from "./format.js";
import { badge, empty, meter } from "./parts.js";
import { ago } from "./times.js";
import { shownStatus } from "./words.js";

const SHOWN_MAX = 200;
const WINDOW_MS = 30_000;
const WINDOW_LEAST_MS = 5_000;
const RANK = { failed: 0, halted: 0, waiting: 0, in_progress: 1, not_started: 2, completed: 3, rolled_back: 3 };
const FILTERS = [
  ["all", "All", () => true],
  ["running", "Running", (row) => row.status === "in_progress"],
  ["attention", "Needs attention", (row) => RANK[shownStatus(row.status, row.job)] === 0],
  ["completed", "Completed", (row) => row.status === "completed"],
];

export function accountHref(account) {
  return `#/account/${encodeURIComponent(account)}`;
}

const handledOf = (job) => job.records_migrated + job.records_skipped + job.records_failed;

/** How fast the jobs of the list go: over what this page has seen of the last half minute, before that since they began. */
export class Paces {
  #seen = new Map(); // by job and run: {at, handled} in the order of their times

  /** Take a row in. */
  note({ job, status }) {
    if (status !== "in_progress" || !job) return;
    const key = `${job.job_id} ${job.run}`;
    const at = Date.parse(job.updated_at);
    const seen = this.#seen.get(key) ?? [];
    if (seen.length && seen[seen.length - 1].at >= at) return;
    seen.push({ at, handled: handledOf(job) });
    while (seen.length > 2 && at - seen[1].at > WINDOW_MS) seen.shift();
    this.#seen.set(key, seen);
  }

  /** Return {perS, etaS} of a row; null where unknown. */
  of({ job, status }) {
    if (status !== "in_progress" || !job || job.waiting) return { perS: null, etaS: null };
    const handled = handledOf(job);
    const seen = this.#seen.get(`${job.job_id} ${job.run}`) ?? [];
    const from = seen.length && Date.parse(job.updated_at) - seen[0].at >= WINDOW_LEAST_MS
      ? seen[0] : { at: Date.parse(job.started_at), handled: 0 };
    const seconds = (Date.parse(job.updated_at) - from.at) / 1000;
    if (!(seconds > 0) || handled === 0) return { perS: null, etaS: null };
    const perS = Math.max(0, handled - from.handled) / seconds;
    const left = Math.max(0, job.records_total - handled);
    return { perS, etaS: left === 0 ? 0 : perS > 0 ? left / perS : null };
  }
}

export function accountsView() {
  const rows = new Map();
  const paces = new Paces();
  let known = false;
  let filter = "all";
  const search = h("input", { type: "search", id: "account-search", autocomplete: "off", spellcheck: "false", placeholder: "Account id" });
  const body = h("tbody", {});
  const table = h("table", { class: "table accounts" },
    h("thead", {}, h("tr", {}, ["Account", "Status", "Progress", "Rows", "Rate", "Time left", "Failed", "Updated"].map((text, at) =>
      h("th", { scope: "col", class: at === 3 || at === 4 || at === 5 || at === 6 ? "number" : null }, text)))),
    body);
  const note = h("p", { class: "card-note", role: "status" });
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accounts in a table", hidden: true }, table);
  const nothing = h("div", {}, empty("Loading the accounts…"));
  const hint = h("p", { class: "hint", hidden: true });
  const filters = h("div", { class: "segments", role: "group", "aria-label": "Which accounts are listed" });
  const buttons = FILTERS.map(([name, label]) => {
    const number_ = h("span", { class: "segment-count" });
    const button = h("button", { type: "button", class: "segment", "aria-pressed": String(name === filter), on: { click: () => choose(name) } }, label, " ", number_);
    return { name, button, number: number_ };
  });
  filters.append(...buttons.map(({ button }) => button));
  const form = h("form", { class: "search", role: "search" },
    h("label", { for: "account-search", class: "visually-hidden" }, "Find an account"),
    icon("search"), search,
    h("button", { class: "button", type: "submit" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = search.value.trim();
    if (wanted) location.hash = accountHref(wanted);
    else search.focus();
  });
  search.addEventListener("input", () => draw());

  const node = h("div", { class: "page" },
    h("div", { class: "page-head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Accounts"), note), form),
    h("section", { class: "card", "aria-label": "Accounts" }, filters, scroll, nothing, hint));

  function choose(name) {
    filter = name;
    for (const one of buttons) one.button.setAttribute("aria-pressed", String(one.name === name));
    draw();
  }

  const cells = new Map(); // by account: what a row's elements are set to

  function rowOf(account) {
    const status = badge("not_started");
    const bar = meter(`Progress of ${account}`);
    const parts = Object.fromEntries(["percent", "rows", "rate", "eta", "failed"].map((name) => [name, h("span", {})]));
    const updated = h("td", { data: { label: "Updated" } });
    const flag = h("span", { class: "flag-note" });
    const cell = (name, label) => h("td", { class: "number", data: { label } }, parts[name]);
    const row = h("tr", {},
      h("th", { scope: "row" }, h("a", { href: accountHref(account), class: "account-link" }, account), flag),
      h("td", { data: { label: "Status" } }, status.node),
      h("td", { class: "progress-cell", data: { label: "Progress" } }, h("div", { class: "progress-line" }, bar.node, parts.percent)),
      cell("rows", "Rows"), cell("rate", "Rate"), cell("eta", "Time left"), cell("failed", "Failed"), updated);
    return { row, status, bar, parts, updated, flag, updatedAt: null };
  }

  function fillRow(made, data) {
    const job = data.job;
    const shown = shownStatus(data.status, job);
    made.status.set(shown);
    const tone = { completed: "good", failed: "bad", halted: "warn", waiting: "warn" }[shown] ?? "busy";
    made.bar.node.hidden = !job || data.status === "rolled_back";
    made.bar.set(job ? job.progress_pct : 0, tone);
    const { perS, etaS } = paces.of(data);
    setText(made.parts.percent, job && data.status !== "rolled_back" ? percent(job.progress_pct) : UNKNOWN);
    setText(made.parts.rows, job ? number(job.records_total) : UNKNOWN);
    setText(made.parts.rate, rate(perS));
    setText(made.parts.eta, span(etaS));
    setText(made.parts.failed, job ? number(job.records_failed + job.records_foreign) : UNKNOWN);
    // On a phone, what is not known takes no room.
    for (const part of Object.values(made.parts)) part.closest("td").classList.toggle("is-unknown", part.textContent === UNKNOWN);
    made.updated.classList.toggle("is-unknown", !job);
    made.parts.failed.classList.toggle("is-bad", Boolean(job && job.records_failed + job.records_foreign));
    setText(made.flag, data.flag_enabled ? "" : "flag off");
    if (made.updatedAt !== (job?.updated_at ?? "")) {
      made.updatedAt = job?.updated_at ?? "";
      made.updated.replaceChildren(ago(job?.updated_at));
    }
  }

  function draw() {
    if (!known) return;
    const wanted = search.value.trim().toLowerCase();
    const all = [...rows.values()];
    for (const { name, number: shown } of buttons) {
      setText(shown, number(all.filter(FILTERS.find(([key]) => key === name)[2]).length));
    }
    const passes = FILTERS.find(([name]) => name === filter)[2];
    const chosen = all.filter((row) => passes(row) && row.company_sso_id.toLowerCase().includes(wanted));
    const rank = (row) => RANK[shownStatus(row.status, row.job)] ?? 2;
    chosen.sort((a, b) => rank(a) - rank(b) || (a.company_sso_id < b.company_sso_id ? -1 : 1));
    const running = all.filter((row) => row.status === "in_progress").length;
    setText(note, `${count(all.length, "account")}, ${number(running)} running`);
    scroll.hidden = chosen.length === 0;
    nothing.hidden = chosen.length > 0;
    if (chosen.length === 0) {
      hint.hidden = true;
      nothing.replaceChildren(all.length === 0 && !wanted
        ? empty("No account has a job or a flag yet", "Type an account's id above and open it: turn its migration flag on there, run a preflight, then start.")
        : empty("No account matches", wanted ? `None that is listed contains “${search.value.trim()}”. “Open” goes to an account with exactly this id.` : "None of the accounts is in this state."));
      return;
    }
    const shown = chosen.slice(0, SHOWN_MAX);
    const order = shown.map((data) => {
      if (!cells.has(data.company_sso_id)) cells.set(data.company_sso_id, rowOf(data.company_sso_id));
      const made = cells.get(data.company_sso_id);
      fillRow(made, data);
      return made.row;
    });
    // Rows that stay where they are are not touched, so that the keyboard's focus is not lost.
    if (order.length !== body.children.length || order.some((row, at) => body.children[at] !== row)) body.replaceChildren(...order);
    const more = chosen.length - shown.length;
    hint.hidden = more === 0;
    setText(hint, `${count(more, "more account")}: search for it by its id.`);
  }

  return {
    node,
    title: "Accounts",
    account: null,
    update(_name, data) {
      if (data.complete) rows.clear();
      for (const row of data.accounts) {
        rows.set(row.company_sso_id, row);
        paces.note(row);
      }
      known = true;
      draw();
    },
    close() {},
  };
}
