// The console's API: requests, and refusals with a remedy.

const ROOT = "api/";
const TIMEOUT_MS = 30_000;

const TO_DO = {
  FLAG_DISABLED: "Turn the account's migration flag on, then start again.",
  contacts_not_migrated: "The contact migration of this account must reach 99 % first; a preflight shows its coverage.",
  CONTACTS_NOT_MIGRATED: "The contact migration of this account must reach 99 % first; a preflight shows its coverage.",
  JOB_ALREADY_RUNNING: "No action needed: this page shows the running job.",
  ALREADY_COMPLETED: "Rerun it to replay it again, or roll it back first.",
  ROLLBACK_FAILED: "Roll back again: it continues.",
  CONFIRMATION_MISMATCH: "Type the account exactly as it is shown.",
  UNAUTHENTICATED: "Reload the page and sign in again.",
  PERMISSION_DENIED: "Ask an operator with this permission.",
  TOO_MANY_FAILURES: "Wait a minute, then try again.",
  SERVICE_UNAVAILABLE: "Try again in a few seconds; if it persists, check MongoDB and Kafka (/readyz names what is down).",
  NOT_READY: "Try again in a few seconds; /readyz names what is down.",
  INTERNAL_ERROR: "Try again; if it persists, report the request id to the operator of this server.",
};

/** A request that was refused, or had no answer. `message` is the error, `toDo` the remedy. */
export class RequestFailed extends Error {
  constructor({ status = 0, code = "", message, toDo = "", requestId = "", fields = [] }) {
    super(message);
    this.status = status;
    this.code = code;
    this.toDo = toDo;
    this.requestId = requestId;
    this.fields = fields;
  }
}

async function failure(response) {
  let envelope = {};
  try {
    envelope = await response.json();
  } catch {
    // A proxy's answer: only its status is known.
  }
  const code = envelope.resp_code ?? "";
  const fields = envelope.meta?.errors ?? [];
  return new RequestFailed({
    status: response.status,
    code,
    message: sentence(envelope.message || `The server answered ${response.status} ${response.statusText}`),
    toDo: TO_DO[code] ?? (fields.length ? "" : "Try again; if it persists, check the server's log."),
    requestId: envelope.meta?.request_id ?? response.headers.get("x-request-id") ?? "",
    fields,
  });
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

async function request(method, path, { query, body, timeoutMs = TIMEOUT_MS } = {}) {
  const url = new URL(ROOT + path, document.baseURI);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const options = { method, headers: { Accept: "application/json", "X-Requested-With": "crm-replay-console" }, cache: "no-store" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  if (timeoutMs) options.signal = AbortSignal.timeout(timeoutMs);
  let response;
  try {
    response = await fetch(url, options);
    if (response.ok) return await response.json();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new RequestFailed({
      code: late ? "TIMEOUT" : "UNREACHABLE",
      message: late ? "The server did not answer in time." : "The server cannot be reached.",
      toDo: "Check the network and that the control plane runs (crm-replay control), then try again.",
    });
  }
  throw await failure(response);
}

export const api = {
  session: () => request("GET", "session"),
  accounts: (query) => request("GET", "accounts", { query }),
  account: (account) => request("GET", "account", { query: { account } }),
  auditLog: (account, limit) => request("GET", "audit-log", { query: { account, limit } }),
  letters: (query) => request("GET", "dead-letters", { query }),
  letter: (account, offset) => request("GET", "dead-letter", { query: { account, offset } }),
  setFlag: (account, enabled) => request("PUT", "flag", { body: { company_sso_id: account, enabled } }),
  /** Do one of the actions; a roll back is answered when all is gone, however long that takes. */
  act: (name, body) => request("POST", name, { body, timeoutMs: name === "rollback" ? 0 : TIMEOUT_MS }),
  eventsUrl(account) {
    const url = new URL(`${ROOT}events`, document.baseURI);
    if (account) url.searchParams.set("account", account);
    return url;
  },
};
