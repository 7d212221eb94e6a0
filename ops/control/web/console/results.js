// What runs in the background, and what the last preflight and the last verification came to.

import { h, icon, whenChanged } from "./dom.js";
import { count, number, percent, rate, span } from "./format.js";
import { empty, meter, pill, scrolled } from "./parts.js";
import { ago } from "./times.js";
import { FOUND, TASK, VERDICT, words } from "./words.js";

const FINDINGS_SHOWN = 20;

/** The strip with tasks that are queued or running, and a roll back under way. */
export function tasksView() {
  const node = h("section", { class: "card tasks", "aria-label": "Running in the background", hidden: true });
  const update = whenChanged(({ tasks, rollback }) => {
    node.hidden = tasks.length === 0 && !rollback;
    const lines = tasks.filter((task) => !(rollback && task.kind === "rollback")).map((task) => {
      const { done, total, text } = task.progress;
      const bar = meter(TASK[task.kind] ?? words(task.kind));
      const known = typeof done === "number" && typeof total === "number" && total > 0;
      bar.set(known ? Math.min(100, (100 * done) / total) : null);
      const waits = task.status === "queued";
      return h("div", { class: "task" },
        h("p", { class: "task-line" }, h("strong", {}, TASK[task.kind] ?? words(task.kind)), " ",
          waits ? "waits for a runner" : typeof text === "string" ? text : "is running",
          known ? `, ${number(done)} of ${number(total)}` : "", h("span", { class: "muted" }, ` · requested by ${task.requested_by}`)),
        waits ? null : bar.node);
    });
    if (rollback) {
      const bar = meter("Roll back");
      const whole = rollback.remaining === null ? null : rollback.removed + rollback.remaining;
      bar.set(whole ? (100 * rollback.removed) / whole : null, rollback.stalled ? "warn" : "bad");
      lines.unshift(h("div", { class: "task" },
        h("p", { class: "task-line" }, h("strong", {}, "Roll back"), ` has removed ${number(rollback.removed)}`,
          whole === null ? " documents" : ` of ${number(whole)} documents`, h("span", { class: "muted" }, ` · by ${rollback.by}`)),
        bar.node,
        rollback.stalled ? h("p", { class: "hint" }, "No progress for half a minute. Roll back again: it continues.") : null));
    }
    node.replaceChildren(h("h2", {}, "In the background"), ...lines);
  });
  return { node, update: ({ tasks, rollback }) => update({ tasks, rollback }) };
}

function whenAndWho(task) {
  return h("p", { class: "card-note" }, ago(task.finished_at ?? task.requested_at), ` by ${task.requested_by}`);
}

function failedTask(task) {
  return h("div", { class: "notice notice-bad" }, icon("warn"),
    h("div", {}, h("p", {}, task.error ?? "It ended without a result."), h("p", {}, "Fix the cause, then request it again.")));
}

/** The card of the last preflight. */
export function preflightView() {
  const head = h("div", { class: "card-head" });
  const body = h("div", {});
  const node = h("section", { class: "card", "aria-labelledby": "preflight-title" }, head, body);
  const title = () => h("h2", { id: "preflight-title" }, "Preflight");
  const update = whenChanged((task) => {
    if (!task) {
      head.replaceChildren(title());
      body.replaceChildren(empty("Not run yet", "A preflight checks source, contacts, user directory, Kafka and MongoDB before a run, and names the remedies."));
      return;
    }
    const checks = task.result?.checks ?? [];
    const ok = task.result?.ok === true;
    head.replaceChildren(title(), whenAndWho(task));
    if (!task.result) return void body.replaceChildren(failedTask(task));
    const bad = checks.filter((check) => check.verdict === "fail").length;
    const warnings = checks.filter((check) => check.verdict === "warn").length;
    const verdict = ok ? (warnings ? `Ready, with ${count(warnings, "warning")}` : "Ready to start") : `Not ready: ${count(bad, "check")} failed`;
    const rank = { fail: 0, warn: 1, ok: 2 };
    const sorted = [...checks].sort((a, b) => (rank[a.verdict] ?? 0) - (rank[b.verdict] ?? 0));
    body.replaceChildren(
      h("p", { class: `verdict verdict-${ok ? (warnings ? "warn" : "good") : "bad"}` }, icon(ok ? (warnings ? "warn" : "ok") : "fail"), verdict),
      h("ul", { class: "checks" }, sorted.map((check) => {
        const { label, tone, icon: drawn } = VERDICT[check.verdict] ?? { label: words(check.verdict), tone: "quiet", icon: "info" };
        return h("li", { class: `check check-${tone}` }, icon(drawn),
          h("div", {},
            h("p", { class: "check-name" }, words(check.name), h("span", { class: "visually-hidden" }, `: ${label}`)),
            h("p", { class: "check-found" }, check.found),
            check.to_do ? h("p", { class: "check-todo" }, h("strong", {}, "To do: "), check.to_do) : null));
      })));
  });
  return { node, update: ({ preflight }) => update(preflight) };
}

/** The card of the last verification. */
export function verificationView() {
  const head = h("div", { class: "card-head" });
  const body = h("div", {});
  const node = h("section", { class: "card", "aria-labelledby": "verification-title" }, head, body);
  const title = () => h("h2", { id: "verification-title" }, "Verification");
  const update = whenChanged((task) => {
    if (!task) {
      head.replaceChildren(title());
      body.replaceChildren(empty("Not run yet", "A verification transforms every source row again and compares it with its document, field for field."));
      return;
    }
    head.replaceChildren(title(), whenAndWho(task));
    const result = task.result;
    if (!result) return void body.replaceChildren(failedTask(task));
    const rows = result.source_rows ?? result.rows;
    const facts = [
      ["Source rows", rows], ["Documents expected", result.documents_expected], ["Documents found", result.documents], ["Equal", result.documents_equal],
    ].filter(([, value]) => typeof value === "number");
    const found = Object.entries(FOUND).map(([kind, label]) => [label, result[kind] ?? result.found?.[kind] ?? 0]).filter(([, value]) => value > 0);
    const findings = result.findings ?? [];
    const mismatches = result.counts ?? [];
    const unhandled = result.offsets ?? [];
    body.replaceChildren(
      h("p", { class: `verdict verdict-${result.equal ? "good" : "bad"}` }, icon(result.equal ? "ok" : "fail"),
        result.equal ? "The copy is equal to its source" : "The copy is not equal to its source"),
      facts.length ? h("dl", { class: "facts" }, facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, number(value))))) : "",
      found.length || mismatches.length || unhandled.length ? h("ul", { class: "checks" },
        found.map(([label, value]) => h("li", { class: "check check-bad" }, icon("fail"), h("p", {}, `${label}: ${number(value)}`))),
        mismatches.map((one) => h("li", { class: "check check-bad" }, icon("fail"), h("p", {}, `Counted wrong: ${one.name}. The job has ${number(one.job)}, its rows ${number(one.truth)}.`))),
        unhandled.map((one) => h("li", { class: "check check-bad" }, icon("fail"), h("p", {}, `Not all processed: ${one.group}, partition ${one.partition}, ${one.committed < 0 ? "nothing" : number(one.committed)} of ${number(one.end)} committed.`)))) : "",
      findings.length ? h("details", { class: "more" },
        h("summary", {}, `The first ${count(Math.min(FINDINGS_SHOWN, findings.length), "finding")}`),
        scrolled("Findings", h("table", { class: "table" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Row"), h("th", { scope: "col" }, "Found"), h("th", { scope: "col" }, "Why"))),
          h("tbody", {}, findings.slice(0, FINDINGS_SHOWN).map((one) => h("tr", {},
            h("th", { scope: "row", class: "code" }, one.audit_id === null ? one.external_id ?? "none" : String(one.audit_id)),
            h("td", {}, words(one.kind)), h("td", {}, one.why, one.fields?.length ? ` (${one.fields.join(", ")})` : ""))))))) : "",
      result.equal ? "" : h("p", { class: "hint" }, "To put it right: ", h("code", {}, `crm-replay verify --account '${task.company_sso_id}' --repair`)),
      result.seconds ? h("p", { class: "hint" }, `${count(rows ?? 0, "row")} in ${span(result.seconds)}${result.rows_per_s ? `, ${rate(result.rows_per_s)}` : ""}`) : "");
  });
  return { node, update: ({ verification }) => update(verification) };
}

/** The card of all jobs the account has had, and of who did what. */
export function historyView() {
  const body = h("div", {});
  const node = h("section", { class: "card", "aria-labelledby": "history-title" }, h("div", { class: "card-head" }, h("h2", { id: "history-title" }, "Jobs")), body);
  const update = whenChanged((history) => {
    if (history.length === 0) return void body.replaceChildren(empty("No job yet", "Every run of this account will be listed here, with what became of its rows."));
    body.replaceChildren(scrolled("Jobs in a table", h("table", { class: "table" },
      h("thead", {}, h("tr", {}, [["Run"], ["Status"], ["Started"], ["Took", 1], ["Rows", 1], ["Migrated", 1], ["Skipped", 1], ["Failed", 1], ["Accuracy", 1], ["By"]].map(
        ([text, isNumber]) => h("th", { scope: "col", class: isNumber ? "number" : null }, text)))),
      h("tbody", {}, history.map((job) => h("tr", {},
        h("th", { scope: "row" }, h("span", { title: `job ${job.job_id}` }, `#${job.run}`), job.partial ? h("span", { class: "flag-note" }, "chosen rows") : null),
        h("td", {}, statusPill(job)),
        h("td", { class: "nowrap" }, ago(job.started_at)),
        h("td", { class: "number nowrap" }, job.finished_at ? span((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) : "–"),
        h("td", { class: "number" }, number(job.records_total)),
        h("td", { class: "number" }, number(job.records_migrated)),
        h("td", { class: "number" }, number(job.records_skipped)),
        h("td", { class: "number" }, h("span", { class: job.records_failed ? "is-bad" : "" }, number(job.records_failed))),
        h("td", { class: "number nowrap" }, percent(job.accuracy_pct, 2)),
        h("td", {}, job.triggered_by)))))));
  });
  // The row of a job in progress would be redrawn each second; its numbers are at the top of the page.
  const still = (job) => ({ ...job, updated_at: null, heartbeat_at: null, last_audit_id: null, progress_pct: null });
  return { node, update: ({ history }) => update(history.map(still)) };
}

function statusPill(job) {
  const names = { in_progress: ["In progress", "busy"], halted: ["Halted", "warn"], completed: ["Completed", "good"], failed: ["Failed", "bad"], rolled_back: ["Rolled back", "quiet"] };
  const [label, tone] = names[job.status] ?? [words(job.status), "quiet"];
  return pill(label, tone);
}
