// Where the rows went: one bar of all rows, and a table with each bin's number, share and meaning.

import { h, setText, whenChanged } from "./dom.js";
import { count, number, share } from "./format.js";
import { causeOf, reasonOf } from "./words.js";

const SHADES = 5; // of the skip reasons, in console.css

/** Return the bins of a job: [{id, label, note, value, tone}], those with nothing in them left out. Pure. */
export function binsOf(job) {
  const reasons = Object.entries(job.skips_by_reason).sort((a, b) => b[1] - a[1]);
  const causes = Object.entries(job.failures_by_cause).sort((a, b) => b[1] - a[1]);
  const handled = job.records_migrated + job.records_skipped + job.records_failed;
  return [
    { id: "migrated", group: "Migrated", label: "Migrated", note: "Became an activity log.", value: job.records_migrated, tone: "good" },
    ...reasons.map(([code, value], at) => ({
      id: `skip-${code}`, group: "Skipped", label: reasonOf(code)[0], note: reasonOf(code)[1], code, value, tone: `skip-${at % SHADES}`,
    })),
    ...causes.map(([code, value]) => ({
      id: `fail-${code}`, group: "Failed", label: causeOf(code)[0], note: causeOf(code)[1], code, value, tone: "bad",
    })),
    {
      id: "left", group: "Left", label: "Not yet", note: "Not processed yet.",
      value: Math.max(0, job.records_total - handled), tone: "left",
    },
  ].filter((bin) => bin.value > 0 || bin.id === "migrated");
}

/** The card. */
export function outcomesView() {
  const bar = h("div", { class: "stack", role: "img" });
  const body = h("tbody", {});
  const note = h("p", { class: "card-note" });
  const foreign = h("p", { class: "hint", hidden: true });
  const more = h("p", { class: "hint", hidden: true });
  const table = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows by outcome in a table" },
    h("table", { class: "table bins" },
      h("thead", {}, h("tr", {},
        h("th", { scope: "col" }, "Outcome"), h("th", { scope: "col", class: "number" }, "Rows"),
        h("th", { scope: "col", class: "number" }, "Share"), h("th", { scope: "col", class: "bin-note" }, "Meaning"))),
      body));
  const node = h("section", { class: "card", "aria-labelledby": "outcomes-title" },
    h("div", { class: "card-head" }, h("h2", { id: "outcomes-title" }, "Rows by outcome"), note), bar, table, more, foreign);

  const update = whenChanged((job) => {
    const bins = binsOf(job);
    const total = Math.max(job.records_total, bins.reduce((sum, bin) => sum + bin.value, 0));
    setText(note, count(job.records_total, "row") + " in scope");
    bar.setAttribute("aria-label", `Rows by outcome. ${bins.map((bin) => `${bin.label}: ${number(bin.value)}`).join(", ")}.`);
    bar.replaceChildren(...bins.filter((bin) => bin.value > 0).map((bin) => {
      const piece = h("span", { class: `piece tone-${bin.tone}`, title: `${bin.label}: ${number(bin.value)} (${share(bin.value, total)})` });
      piece.style.flexGrow = String(bin.value);
      return piece;
    }));
    body.replaceChildren(...bins.map((bin) => h("tr", {},
      h("th", { scope: "row" },
        h("span", { class: `swatch tone-${bin.tone}`, "aria-hidden": "true" }),
        h("span", { class: "bin-label" }, bin.group === "Skipped" || bin.group === "Failed" ? h("span", { class: "bin-group" }, `${bin.group}: `) : null, bin.label),
        bin.code ? h("span", { class: "code bin-code" }, bin.code) : null),
      h("td", { class: "number" }, number(bin.value)),
      h("td", { class: "number" }, share(bin.value, total)),
      h("td", { class: "bin-note" }, bin.note))));
    const text = alsoOf(job);
    more.hidden = text === "";
    setText(more, text);
    foreign.hidden = job.records_foreign === 0;
    setText(foreign, `Beside these, ${count(job.records_foreign, "dead letter is", "dead letters are")} about no row of this account.`);
  });
  return { node, update: (detail) => detail.job && update(pick(detail.job)) };
}

/** Return what else is known of the rows in the bins, in one line; "" if nothing is. Pure. */
export function alsoOf(job) {
  const parts = [
    [job.records_duplicate, "had their activity log in place already"],
    [job.records_repaired, "had failed and were repaired since"],
    [job.records_late, "were committed late and found by the second look"],
    [job.actors_fell_back, "have the actor «[Deleted CRM User]»"],
  ].filter(([value]) => value > 0).map(([value, text]) => `${number(value)} ${text}`);
  const rows = parts.length ? `Of these rows, ${parts.join("; ")}.` : "";
  const documents = typeof job.documents === "number" ? `${count(job.documents, "activity log")} of the replay in place when they were counted last.` : "";
  return [rows, documents].filter(Boolean).join(" ");
}

const PICKED = [
  "records_total", "records_migrated", "records_skipped", "records_failed", "records_foreign", "records_duplicate", "records_repaired",
  "records_late", "actors_fell_back", "documents", "skips_by_reason", "failures_by_cause",
];

function pick(job) {
  return Object.fromEntries(PICKED.map((name) => [name, job[name]]));
}
