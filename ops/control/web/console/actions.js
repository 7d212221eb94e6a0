// The actions on an account, each with its confirmation.

import { api } from "./api.js";
import { confirmed } from "./dialogs.js";
import { h, toast } from "./dom.js";
import { count, number } from "./format.js";

const REASON = { name: "reason", label: "Reason (optional)", hint: "Kept in the audit log.", maxlength: 500 };

function documentsOf(job) {
  if (!job) return ".";
  if (typeof job.documents === "number") return `: ${count(job.documents, "document")} when they were counted last.`;
  return `: ${count(job.records_migrated, "document")} of the last run.`;
}

const ACTIONS = [
  {
    name: "trigger", label: "Start", tone: "primary",
    question: (account) => ({
      title: `Start the migration of ${account}?`,
      lines: ["The account's audit history is read from the CRM and written as activity logs. Guards come first: the flag, contact coverage, no other job."],
      fields: [{ name: "from", label: "Only rows created from (optional)", type: "datetime-local", step: 1, hint: "Your local time. Leave it empty for the whole history." }],
      confirm: "Start the migration",
    }),
    body: ({ from }) => (from ? { date_range_start: new Date(from).toISOString() } : {}),
    done: "The migration has been started.",
  },
  {
    name: "halt", label: "Halt",
    question: (account) => ({
      title: `Halt the migration of ${account}?`,
      lines: ["Its processes stop after the batches in flight. Written documents stay, and the position is kept for a resume."],
      fields: [REASON], confirm: "Halt the migration",
    }),
    done: "The migration is being halted.",
  },
  {
    name: "resume", label: "Resume", tone: "primary",
    question: (account, detail) => ({
      title: `Resume the migration of ${account}?`,
      lines: [
        "It continues from its saved position; no document is written twice.",
        ...(detail?.job?.failure_halt ? ["Failures count over the job's whole life: retry the dead letters first, or allow them here."] : []),
      ],
      fields: [
        {
          name: "bound", label: "Halt only above this percentage of failed rows (optional)", type: "number", min: 11, max: 100, step: 1,
          hint: "Until the next resume; empty: 10. It needs a reason.",
        },
        { ...REASON, label: "Reason (needed for a percentage)" },
      ],
      confirm: "Resume the migration",
    }),
    body: ({ bound }) => (bound ? { failure_bound: Number(bound) / 100 } : {}),
    done: "The migration has been resumed.",
  },
  {
    name: "preflight", label: "Preflight",
    question: (account) => ({
      title: `Run a preflight of ${account}?`,
      lines: ["It checks on every server what a run needs, and writes nothing. The result is shown on this page."],
      confirm: "Run the preflight",
    }),
    done: "The preflight is queued.",
  },
  {
    name: "verify", label: "Verify",
    question: (account) => ({
      title: `Verify the copy of ${account}?`,
      lines: ["Every source row is transformed again and compared with its document. It reads the whole history and writes nothing."],
      confirm: "Verify the copy",
    }),
    done: "The verification is queued.",
  },
  {
    name: "rerun", label: "Rerun",
    question: (account) => ({
      title: `Rerun the migration of ${account}?`,
      lines: ["The whole history is replayed again. Existing documents are skipped as duplicates, missing ones are added."],
      fields: [REASON], confirm: "Rerun the migration",
    }),
    done: "The rerun has been started.",
  },
  {
    name: "rollback", label: "Roll back…", tone: "danger",
    question: (account, detail) => ({
      title: `Roll back ${account}?`,
      lines: [
        h("p", {}, h("strong", {}, "This deletes every activity log that the replay has written for this account"),
          documentsOf(detail?.job)),
        "Documents of the live feed and of other accounts do not change. It cannot be undone; a new run writes the logs again.",
      ],
      fields: [
        { name: "confirm", label: `Type ${account} to confirm`, required: true, matches: account },
        REASON,
      ],
      confirm: "Delete these documents", danger: true,
    }),
    body: ({ confirm }) => ({ confirm }),
  },
];

/** The bar of buttons; an unavailable action shows its reason when clicked. */
export function actionBar(account, live) {
  let detail = null;
  const why = h("p", { class: "why-not", role: "status" });
  const buttons = ACTIONS.map((action) => {
    const button = h("button", { type: "button", class: `button ${action.tone === "danger" ? "danger-quiet" : ""}` }, action.label);
    button.addEventListener("click", () => void use(action, button));
    return { action, button };
  });
  const node = h("div", { class: "actions" },
    h("div", { class: "action-buttons", role: "group", "aria-label": "Actions" }, buttons.map(({ button }) => button)), why);

  function refusalOf(name) {
    const one = detail?.actions.find((other) => other.name === name);
    if (!detail) return "The account is still being loaded.";
    return one && one.allowed ? null : one?.why_not ?? "This is not possible now.";
  }

  async function use(action, button) {
    const refusal = refusalOf(action.name);
    if (refusal) {
      why.textContent = `${action.label.replace("…", "")}: ${refusal}`;
      return;
    }
    why.textContent = "";
    const question = action.question(account, detail);
    const submit = (values) => api.act(action.name, {
      company_sso_id: account, ...(action.body ? action.body(values) : {}), ...(values.reason ? { reason: values.reason } : {}),
    });
    const patient = action.name === "rollback"
      ? (work) => {
        toast("The roll back is under way; this page shows how far it is.");
        work.then(rolledBack, (error) => toast(`${error.message} ${error.code === "UNREACHABLE" ? "The roll back continues on the server; this page shows its progress." : error.toDo}`, "bad"));
      }
      : undefined;
    const done = await confirmed({ ...question, submit, patient });
    if (button.isConnected) button.focus();
    if (done === undefined) return;
    if (action.name === "rollback") rolledBack(done);
    else toast(action.done);
    void live.refresh();
  }

  function rolledBack(answer) {
    toast(`Rolled back: ${count(answer.records_removed, "document")} removed.`);
    void live.refresh();
  }

  return {
    node,
    update(now) {
      detail = now;
      for (const { action, button } of buttons) {
        const refusal = refusalOf(action.name);
        button.setAttribute("aria-disabled", String(refusal !== null));
        button.title = refusal ?? "";
        button.classList.toggle("primary", action.tone === "primary" && refusal === null);
      }
    },
  };
}

/** The switch of the account's migration flag. */
export function flagSwitch(account, live) {
  const text = h("span", { class: "switch-text" });
  const button = h("button", { type: "button", class: "switch", role: "switch", "aria-checked": "false", "aria-labelledby": "flag-label" },
    h("span", { class: "switch-knob", "aria-hidden": "true" }));
  const node = h("div", { class: "flag" }, h("span", { id: "flag-label" }, "Migration flag"), button, text);
  let busy = false;
  const show = (enabled) => {
    button.setAttribute("aria-checked", String(enabled));
    text.textContent = enabled ? "on" : "off";
  };
  button.addEventListener("click", async () => {
    if (busy) return;
    busy = true;
    const wanted = button.getAttribute("aria-checked") !== "true";
    try {
      const flag = await api.setFlag(account, wanted);
      show(flag.enabled);
      toast(`The migration flag of ${account} is ${flag.enabled ? "on" : "off"}.`);
      void live.refresh();
    } catch (error) {
      toast(`The flag was not changed. ${error.message} ${error.toDo}`, "bad");
    } finally {
      busy = false;
    }
  });
  return {
    node,
    update({ flag }) {
      if (busy) return;
      show(flag.enabled);
      button.title = flag.changed_by ? `Turned ${flag.enabled ? "on" : "off"} by ${flag.changed_by}` : "Off by default";
    },
  };
}

/** Retry the rows of dead letters after a confirmation. */
export async function retryLetters(account, { cause, auditIds, howMany, force }, live) {
  const body = { company_sso_id: account };
  if (cause) body.cause = cause;
  if (auditIds) body.audit_ids = auditIds;
  if (force) body.force = true;
  const done = await confirmed({
    title: auditIds?.length === 1 ? `Retry row ${auditIds[0]}?` : `Retry ${number(howMany)} dead letters?`,
    lines: [
      "Their rows are read from the CRM again and replayed through the same topology. A row that fails again becomes a new dead letter.",
      force ? "Rows that have failed three times are sent as well." : "Rows that have failed three times are left out.",
    ],
    confirm: "Retry", submit: () => api.act("dlq-retry", body),
  });
  if (done === undefined) return false;
  toast("The retry is queued; this page shows its progress.");
  void live.refresh();
  return true;
}
