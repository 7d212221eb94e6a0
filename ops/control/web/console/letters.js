// The account's dead letters: cause, remedy, the payload on request, and the retry.

import { retryLetters } from "./actions.js";
import { api } from "./api.js";
import { problem } from "./dialogs.js";
import { announce, h, setText } from "./dom.js";
import { bytes, count, number } from "./format.js";
import { empty, pill } from "./parts.js";
import { ago, moment } from "./times.js";
import { causeOf, LETTER_STATE } from "./words.js";

const PAGE = 25;
const HEX_SHOWN = 4096;

/** Return bytes given as hex in lines of sixteen: place, hex, and the ASCII among them. Pure. */
export function hexLines(hex) {
  const lines = [];
  for (let at = 0; at < Math.min(hex.length, 2 * HEX_SHOWN); at += 32) {
    const pairs = hex.slice(at, at + 32).match(/../g) ?? [];
    const text = pairs.map((pair) => {
      const code = parseInt(pair, 16);
      return code >= 32 && code < 127 ? String.fromCharCode(code) : ".";
    }).join("");
    lines.push(`${(at / 2).toString(16).padStart(4, "0")}  ${pairs.join(" ").padEnd(47)}  ${text}`);
  }
  if (hex.length > 2 * HEX_SHOWN) lines.push(`… ${number(hex.length / 2 - HEX_SHOWN)} bytes more`);
  return lines.join("\n");
}

/** Return a value of a payload as text; JSON inside a text is set out too, if nothing is lost by it. Pure. */
export function valueText(value) {
  if (value === null || value === undefined) return "null";
  if (typeof value === "object") return JSON.stringify(value, null, 2);
  if (typeof value === "string" && /^\s*[[{]/.test(value)) {
    try {
      const read = JSON.parse(value);
      const bare = (text) => text.replace(/\s/g, "");
      // Not where a number has too many digits for this language, or a key is there twice.
      if (bare(JSON.stringify(read)) === bare(value)) return JSON.stringify(read, null, 2);
    } catch {
      // Only looked like JSON.
    }
  }
  return String(value);
}

function payloadNode({ kind, bytes: size, fields, hex, why }) {
  const parts = [h("p", { class: "hint" }, `${kind}, ${bytes(size)}${why ? `: ${why}` : ""}`)];
  if (fields) {
    parts.push(h("dl", { class: "payload-fields" }, Object.entries(fields).map(([name, value]) => {
      const text = valueText(value);
      return h("div", {}, h("dt", { class: "code" }, name),
        h("dd", {}, text === "" ? h("span", { class: "muted" }, "empty") : h("pre", { tabindex: text.length > 80 ? "0" : null, role: text.length > 80 ? "group" : null, "aria-label": text.length > 80 ? name : null }, text)));
    })));
  } else if (hex) {
    parts.push(h("pre", { class: "hex", tabindex: "0", role: "group", "aria-label": "Payload in hex" }, hexLines(hex)));
  }
  return h("div", { class: "payload" }, parts);
}

export function lettersView(account, live) {
  const causes = h("select", { id: "letter-cause" });
  const refresh = h("button", { type: "button", class: "button small" }, "Refresh");
  const retryAll = h("button", { type: "button", class: "button small", hidden: true });
  const note = h("p", { class: "card-note", role: "status" });
  const list = h("ul", { class: "letters" });
  const place = h("div", {}, list);
  const more = h("button", { type: "button", class: "button small", hidden: true }, "Show more");
  const tools = h("div", { class: "letter-tools", hidden: true },
    h("div", { class: "inline-field" }, h("label", { for: "letter-cause" }, "Cause"), causes), refresh, retryAll);
  const node = h("section", { class: "card", "aria-labelledby": "letters-title" },
    h("div", { class: "card-head" }, h("h2", { id: "letters-title" }, "Dead letters"), note), tools, place, more);

  let topic; // letters that the topic holds, by the last event
  let seen; // of them, when the list was loaded
  let page = null;
  let mayRetry = { allowed: false, why_not: null };
  let generation = 0;

  // `requested`: by the user, to whom the result is announced; automatic loads are silent.
  async function load(cursor = null, requested = false) {
    const mine = (generation += 1);
    refresh.disabled = true;
    try {
      const answer = await api.letters({ account, cause: causes.value, cursor, limit: PAGE });
      if (mine !== generation) return;
      page = answer;
      seen = topic;
      show(answer, cursor !== null);
      if (requested) announce(`${count(answer.letters.length === 0 ? 0 : list.children.length, "dead letter")} listed`);
    } catch (error) {
      if (mine !== generation) return;
      tools.hidden = false;
      place.replaceChildren(problem(error));
    } finally {
      if (mine === generation) {
        refresh.disabled = false;
        setText(refresh, "Refresh");
      }
    }
  }

  function show(answer, appends) {
    const all = Object.values(answer.causes).reduce((sum, value) => sum + value, 0);
    tools.hidden = all === 0;
    if (all === 0) {
      setText(note, "");
      more.hidden = true;
      place.replaceChildren(empty("No dead letters", "Every record could be understood and stored. Failed records are listed here, with cause and payload."));
      return;
    }
    const chosen = causes.value;
    causes.replaceChildren(h("option", { value: "" }, `All (${number(all)})`),
      ...Object.entries(answer.causes).sort((a, b) => b[1] - a[1]).map(([cause, value]) => h("option", { value: cause }, `${causeOf(cause)[0]} (${number(value)})`)));
    causes.value = chosen in answer.causes ? chosen : "";
    const states = Object.entries(answer.states).filter(([, value]) => value > 0);
    setText(note, states.map(([state, value]) => `${number(value)} ${({ waiting: "waiting", resolved: "resolved", no_row: "without a row" })[state] ?? state}`).join(" · ")
      + (answer.truncated ? " · only the newest are looked at, see crm-replay dlq list" : ""));
    showRetry();
    const items = answer.letters.map(letterNode);
    if (appends) list.append(...items);
    else list.replaceChildren(...items);
    place.replaceChildren(list);
    more.hidden = answer.next_cursor === null;
  }

  function showRetry() {
    const waiting = page?.states.waiting ?? 0;
    retryAll.hidden = waiting === 0;
    setText(retryAll, waiting === 1 ? "Retry the one that waits" : `Retry all ${number(waiting)} that wait`);
    for (const button of [retryAll, ...list.querySelectorAll("button[data-retry]")]) {
      button.setAttribute("aria-disabled", String(!mayRetry.allowed));
      button.title = mayRetry.allowed ? "" : mayRetry.why_not ?? "";
    }
  }

  async function retry(what) {
    if (!mayRetry.allowed) {
      setText(note, `Retry: ${mayRetry.why_not ?? "this is not possible now."}`);
      return;
    }
    await retryLetters(account, what, live);
  }

  function letterNode(letter) {
    const [label, toDo] = causeOf(letter.cause);
    const state = LETTER_STATE[letter.state] ?? { label: letter.state, tone: "quiet" };
    const payload = h("div", {});
    const reveal = h("button", { type: "button", class: "button small" }, "Show the payload");
    reveal.addEventListener("click", async () => {
      reveal.disabled = true;
      try {
        const found = await api.letter(account, letter.offset);
        payload.replaceChildren(payloadNode(found.payload));
        reveal.remove();
      } catch (error) {
        payload.replaceChildren(problem(error));
        reveal.disabled = false;
      }
    });
    const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
    const retryOne = letter.state === "waiting" && letter.audit_id !== null
      ? h("button", { type: "button", class: "button small", data: { retry: "" }, "aria-disabled": String(!mayRetry.allowed) }, "Retry this row") : null;
    retryOne?.addEventListener("click", () => retry({ auditIds: [letter.audit_id], howMany: 1, force: letter.failures > 3 }));
    return h("li", {}, h("details", { class: "letter" },
      h("summary", {},
        h("span", { class: "letter-id" }, letter.audit_id === null ? "No row id" : `Row ${letter.audit_id}`),
        h("span", { class: "letter-cause" }, label),
        h("span", { class: "letter-age" }, ago(letter.failed_at)),
        pill(state.label, state.tone)),
      h("div", { class: "letter-body" },
        letter.detail ? h("p", { class: "letter-detail" }, letter.detail) : null,
        toDo ? h("p", {}, toDo) : null,
        h("dl", { class: "facts" },
          fact("Cause", h("span", { class: "code" }, letter.cause)), fact("Failed", moment(letter.failed_at)),
          fact("Run", `#${letter.run}`), fact("Failures of this row", number(letter.failures)),
          fact("Read at", h("span", { class: "code" }, `${letter.source.topic} / ${letter.source.partition} @ ${letter.source.offset}`)),
          fact("Letter", h("span", { class: "code" }, `@ ${letter.offset}`)),
          letter.why ? fact("State", letter.why) : null),
        h("div", { class: "letter-buttons" }, reveal, retryOne,
          h("p", { class: "hint" }, `The payload (${bytes(letter.payload_bytes)}) is personal data of the CRM; showing it is recorded in the audit log.`)),
        payload)));
  }

  causes.addEventListener("change", () => void load(null, true));
  refresh.addEventListener("click", () => void load(null, true));
  more.addEventListener("click", () => void load(page?.next_cursor ?? null, true));
  retryAll.addEventListener("click", () => retry({ cause: causes.value || null, howMany: page?.states.waiting ?? 0 }));

  return {
    node,
    update(detail) {
      mayRetry = detail.actions.find((action) => action.name === "dlq-retry") ?? mayRetry;
      showRetry();
      const before = topic;
      topic = detail.stages.find((stage) => stage.name === "dead_letters")?.waiting ?? null;
      if (page === null && before === undefined) {
        void load();
      } else if (topic !== seen && topic !== null) {
        // An open letter is not removed while it is read.
        if (node.contains(document.activeElement) || list.querySelector("details[open]")) {
          setText(refresh, topic > (seen ?? 0) ? `Refresh (${number(topic - (seen ?? 0))} new)` : "Refresh");
        } else if (!refresh.disabled) void load();
      }
    },
    /** Reload: the number of letters does not show what a retry has resolved. */
    reload: () => {
      if (!node.contains(document.activeElement) && !list.querySelector("details[open]")) void load();
    },
  };
}
