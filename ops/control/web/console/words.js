// The labels of the system's codes.

export const STATUS = {
  not_started: { label: "Not started", tone: "quiet" },
  in_progress: { label: "In progress", tone: "busy" },
  waiting: { label: "Waiting for a runner", tone: "warn" },
  halted: { label: "Halted", tone: "warn" },
  completed: { label: "Completed", tone: "good" },
  failed: { label: "Failed", tone: "bad" },
  rolled_back: { label: "Rolled back", tone: "quiet" },
  queued: { label: "Queued", tone: "quiet" },
  running: { label: "Running", tone: "busy" },
  done: { label: "Done", tone: "good" },
};

export const REASON = {
  unmapped_action_type: ["No category", "Type, action and columns are outside the mapping."],
  contact_not_found: ["No contact", "No contact of this account has any of the row's CRM person ids."],
  post_sync_live_feed: ["Live feed has it", "Created after the contact's sync: the live feed owns it."],
  pre_sync_replay: ["Replay has it", "Created before the contact's sync: the replay owns it."],
  duplicate_external_id: ["Already exists", "A document with this external_id existed before."],
};

export const CAUSE = {
  undecodable_record: ["Record unreadable", "Not a record of a known schema. Find the producer that writes to this topic; such a record has no row to retry."],
  undecodable_changes: ["Changes unreadable", "audited_changes cannot be read at all. Check the row in the CRM; fix it, or the reader, then retry."],
  row_too_large: ["Row too large", "Larger than the topic accepts. Raise the replay topic's max.message.bytes, then retry."],
  wrong_account: ["Another account's", "A record of another account in this topic. Find its producer; it is never written to either account."],
  transform_failed: ["Transformation failed", "A defect in the rules. Report the payload to the maintainers; retry with the fixed version."],
  document_too_large: ["Document too large", "Over MongoDB's 16 MiB. It cannot be stored as it is: redact or leave out the large column, then retry."],
  write_refused: ["Write refused", "MongoDB refused the document twice. The detail has the cause (validation rules, for example); fix it, then retry."],
  unreadable: ["Not a dead letter", "This record is not ours. Find the producer that writes to this topic."],
};

export const LETTER_STATE = {
  waiting: { label: "Waits", tone: "warn" },
  resolved: { label: "Resolved", tone: "good" },
  no_row: { label: "No row", tone: "quiet" },
};

export const VERDICT = {
  ok: { label: "OK", tone: "good", icon: "ok" },
  warn: { label: "Warning", tone: "warn", icon: "warn" },
  fail: { label: "Failed", tone: "bad", icon: "fail" },
};

export const FOUND = {
  missing: "Missing: a row without its document",
  extra: "Extra: a document without its row",
  different: "Different: not what the row becomes",
  dead_letter_lost: "Dead letter lost",
};

export const TASK = { preflight: "Preflight", verify: "Verification", dlq_retry: "Retry of dead letters", rollback: "Roll back" };

/** Return a code as words. */
export function words(code) {
  const text = String(code).replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function reasonOf(code) {
  return REASON[code] ?? [words(code), ""];
}

export function causeOf(code) {
  return CAUSE[code] ?? [words(code), ""];
}

/** Return the status to be shown of an account or a job: one without a runner is waiting. */
export function shownStatus(status, job) {
  return status === "in_progress" && job?.waiting ? "waiting" : status;
}
