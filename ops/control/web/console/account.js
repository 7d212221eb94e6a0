// The page of one account.

import { actionBar, flagSwitch } from "./actions.js";
import { api } from "./api.js";
import { problem } from "./dialogs.js";
import { announce, h, icon, setText, whenChanged } from "./dom.js";
import { flowView } from "./flow.js";
import { count, number, percent, rate, span, UNKNOWN } from "./format.js";
import { lettersView } from "./letters.js";
import { outcomesView } from "./outcomes.js";
import { badge, empty, meter, pill, scrolled } from "./parts.js";
import { historyView, preflightView, tasksView, verificationView } from "./results.js";
import { ago, moment } from "./times.js";
import { shownStatus, STATUS, words } from "./words.js";

const AUDIT_ENTRIES = 20;

function heroView(account, live) {
  const status = badge("not_started");
  const flag = flagSwitch(account, live);
  const actions = actionBar(account, live);
  const percentText = h("p", { class: "hero-percent" });
  const line = h("p", { class: "hero-line" });
  const bar = meter("Progress of the migration");
  const facts = Object.fromEntries(["Migrated", "Skipped", "Failed", "Rate", "Time left", "Accuracy"].map((name) => {
    const value = h("dd", {});
    return [name, { value, node: h("div", {}, h("dt", {}, name), value) }];
  }));
  const progress = h("div", { class: "hero-progress" },
    h("div", { class: "hero-figures" }, percentText, line), bar.node,
    h("dl", { class: "hero-facts" }, Object.values(facts).map(({ node }) => node)));
  const idle = h("div", { class: "hero-idle" }, empty("Not started", "Nothing has been migrated for this account. Turn its flag on, run a preflight, then start."));
  const notice = h("div", {});
  const node = h("section", { class: "card hero", "aria-label": "Migration" },
    h("div", { class: "hero-head" }, status.node, flag.node), notice, progress, idle, actions.node);

  const showNotice = whenChanged((what) => {
    notice.replaceChildren(...(what ? [h("div", { class: `notice notice-${what.tone}` }, icon(what.tone === "bad" ? "warn" : "info"),
      h("div", {}, h("p", { class: "notice-what" }, what.text), what.toDo ? h("p", {}, what.toDo) : null))] : []));
  });
  let before;

  return {
    node,
    update(detail) {
      const job = detail.job;
      const shown = shownStatus(detail.status, job);
      status.set(shown);
      if (before !== undefined && before !== shown) announce(`${account}: ${STATUS[shown]?.label ?? shown}`);
      before = shown;
      flag.update(detail);
      actions.update(detail);
      progress.hidden = !job;
      idle.hidden = Boolean(job);
      showNotice(noticeOf(detail));
      if (!job) return;
      const handled = job.records_migrated + job.records_skipped + job.records_failed;
      const running = detail.status === "in_progress";
      setText(percentText, percent(job.progress_pct));
      setText(line, `${number(handled)} of ${count(job.records_total, "row")}`);
      bar.set(job.progress_pct, { completed: "good", failed: "bad", halted: "warn", waiting: "warn", rolled_back: "quiet" }[shown] ?? "busy");
      setText(facts.Migrated.value, number(job.records_migrated));
      setText(facts.Skipped.value, number(job.records_skipped));
      setText(facts.Failed.value, number(job.records_failed));
      facts.Failed.value.classList.toggle("is-bad", job.records_failed > 0);
      setText(facts.Accuracy.value, percent(job.accuracy_pct, 2));
      facts.Rate.node.hidden = facts["Time left"].node.hidden = !running;
      facts.Accuracy.node.hidden = running;
      setText(facts.Rate.value, rate(detail.pace?.rows_per_s));
      facts.Rate.value.title = detail.pace?.rows_per_s_average ? `${rate(detail.pace.rows_per_s_average)} on average` : "";
      setText(facts["Time left"].value, detail.pace?.eta_s === null || detail.pace?.eta_s === undefined ? UNKNOWN : span(detail.pace.eta_s));
    },
  };
}

/** Return the account's most urgent notice: {tone, text, toDo}, or null. Pure. */
export function noticeOf({ status, job, rollback }) {
  if (rollback) return null;
  if (job?.error && (status === "halted" || status === "failed")) {
    return {
      tone: status === "failed" ? "bad" : "warn",
      text: `${status === "failed" ? "Failed" : "Halted"}: ${job.error}`,
      toDo: job.failure_halt
        ? "The position is kept. Fix the cause, retry the dead letters, then resume; or resume with a higher bound and a reason."
        : "The position is kept. Fix the cause, then resume.",
    };
  }
  if (status === "failed") return { tone: "bad", text: "The job has failed.", toDo: "The cause is in its log. Fix it, then resume." };
  if (status === "halted") return { tone: "warn", text: "The job is halted.", toDo: "The position is kept for a resume." };
  if (status === "in_progress" && job?.waiting) {
    return { tone: "warn", text: "No runner has claimed this job.", toDo: "Check that a runner (crm-replay runner) with free capacity is running: it claims the job." };
  }
  if (job?.error) return { tone: "warn", text: job.error };
  if (status === "completed" && job?.enrichment?.state === "pending") {
    return { tone: "warn", text: `Enrichment pending: ${job.enrichment.error}`, toDo: `crm-replay enrich --account ${job.company_sso_id} finishes it.` };
  }
  return null;
}

function auditLogView(account) {
  const body = h("div", {});
  const node = h("section", { class: "card", "aria-labelledby": "log-title" },
    h("div", { class: "card-head" }, h("h2", { id: "log-title" }, "Audit log")), body);
  const show = whenChanged((entries) => {
    if (entries.length === 0) return void body.replaceChildren(empty("No entries yet", "Starts, halts, resumes and roll backs are recorded here."));
    body.replaceChildren(scrolled("Audit log, in a table", h("table", { class: "table" },
      h("thead", {}, h("tr", {}, ["When", "Who", "What", "Outcome", "Detail"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, entries.map((entry) => h("tr", {},
        h("td", { class: "nowrap" }, ago(entry.at)), h("td", {}, entry.who), h("td", {}, words(entry.action.replaceAll("-", " "))),
        h("td", {}, entry.outcome === "ok" ? pill("OK", "good") : pill(entry.outcome, "warn")),
        h("td", { class: "log-detail" }, Object.entries(entry.detail).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
          `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", "))))))));
  });
  return {
    node,
    async load() {
      try {
        show((await api.auditLog(account, AUDIT_ENTRIES)).entries);
      } catch (error) {
        body.replaceChildren(problem(error));
      }
    },
  };
}

export function accountView(account, live) {
  const hero = heroView(account, live);
  const flow = flowView();
  const outcomes = outcomesView();
  const tasks = tasksView();
  const preflight = preflightView();
  const verification = verificationView();
  const letters = lettersView(account, live);
  const history = historyView();
  const log = auditLogView(account);
  const sub = h("p", { class: "card-note" });
  const loaded = h("div", { class: "stack-cards", hidden: true }, hero.node, tasks.node, flow.node, outcomes.node,
    h("div", { class: "columns" }, preflight.node, verification.node), letters.node, history.node, log.node);
  const loading = h("div", { class: "card" }, empty("Loading the account…"));
  const node = h("div", { class: "page" },
    h("a", { class: "back", href: "#/" }, icon("back"), "Accounts"),
    h("div", { class: "page-head" }, h("div", {}, h("h1", { tabindex: "-1" }, account), sub)), loading, loaded);

  const showSub = whenChanged((job) => {
    if (!job) return void sub.replaceChildren();
    sub.replaceChildren(`Run #${job.run}, started `, ago(job.started_at), ` by ${job.triggered_by}`,
      ...(job.date_range_start ? [", rows from ", moment(job.date_range_start)] : []),
      ...(job.partial ? [", chosen rows only"] : []));
  });
  let marks = "";

  return {
    node,
    title: account,
    account,
    update(_name, detail) {
      loading.hidden = true;
      loaded.hidden = false;
      const hasJob = detail.job !== null;
      flow.node.hidden = detail.stages.length === 0;
      outcomes.node.hidden = !hasJob;
      letters.node.hidden = !hasJob;
      showSub(detail.job && { run: detail.job.run, started_at: detail.job.started_at, triggered_by: detail.job.triggered_by, date_range_start: detail.job.date_range_start, partial: detail.job.partial });
      for (const part of [hero, tasks, outcomes, preflight, verification, history]) part.update(detail);
      if (detail.stages.length) flow.update(detail);
      if (hasJob) letters.update(detail);
      // Something was done to the account: then there is news in the log, and a retry may have resolved letters.
      const now = JSON.stringify([detail.status, detail.flag, detail.tasks.map((task) => task.task_id), detail.rollback === null, detail.job?.run]);
      if (now !== marks) {
        if (marks !== "" && hasJob) letters.reload();
        marks = now;
        void log.load();
      }
    },
    close: () => flow.close(),
  };
}
