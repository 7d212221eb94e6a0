/*
 * <crm-migration-status>: shows a customer that their CRM history is being imported, and the progress.
 *
 *   <script type="module" src="/assets/crm-migration-status.js"></script>
 *   <crm-migration-status></crm-migration-status>
 *
 * It is visible only while the import is in progress. In any other case (another status, no permission, a server
 * that is down, an answer it does not understand) it is hidden, and neither throws nor writes to the console:
 * its page does not depend on it. One file, no dependencies, no inline style; works under a strict CSP.
 *
 * Attributes
 *   src           the URL to poll; default /v1/crm_migration/status
 *   interval-s    seconds between two requests; default 15
 *   credentials   as fetch takes it: same-origin (default), include, omit
 *   theme         light, dark or auto (the system's); default: the page's own `color-scheme`
 *   label, detail, progress-label, announcement   the texts; `{percent}` in the last two stands for the number
 *   announce-step per cent between two announcements to a screen reader; default 25
 * Properties      tokenProvider: function that returns the session token or a promise of it (sent as a bearer token)
 * Methods         refresh(): poll now, also after it has stopped
 * Slots           icon, label, detail
 * Parts           banner, icon, text, label, detail, percent, track, bar
 * CSS             --crm-migration-background, -color, -muted-color, -border-color, -accent-color, -track-color, -radius,
 *                 -padding, -font
 * Event           crm-migration-change, detail {status, percent, visible}; also sent when the import has ended
 * While it is visible it has the attribute `active`.
 */

export const DEFAULT_URL = "/v1/crm_migration/status";
export const DEFAULT_INTERVAL_S = 15;
export const HIDDEN = Object.freeze({ status: null, percent: null, visible: false });

const LAST_WORDS = new Set(["completed", "not_started"]); // nothing more is to be expected after these
const OTHER_WORDS = new Set(["halted", "failed", "rolled_back"]); // an operator can bring the import back
const INTERVAL_MIN_S = 0.01;

/** Return the state that an answer of the server stands for; throws if it is no answer of ours. */
export function stateOf(answer) {
  const status = answer?.status;
  if (status === "in_progress") {
    const percent = answer.progress_pct;
    if (typeof percent !== "number" || !(percent >= 0 && percent <= 100)) throw new TypeError("no percentage");
    return { status, percent, visible: true };
  }
  if (LAST_WORDS.has(status) || OTHER_WORDS.has(status)) return { status, percent: null, visible: false };
  throw new TypeError("no status");
}

/**
 * Polls the status, one request at a time, and calls back when the state has changed.
 *
 * Stops on `completed` and `not_started`; pauses while the page is hidden; aborts a request after one
 * interval. Any error is the state HIDDEN, and polling continues.
 */
export class MigrationStatusPoller {
  #options;
  #onChange;
  #state = HIDDEN;
  #running = false;
  #timer;
  #request = null; // AbortController of the pending request
  #askedAt = -Infinity;
  #lookedAt = () => this.#visibilityChanged();

  /** @param options url, intervalS, credentials, tokenProvider; read before every question, so they may change. */
  constructor(options, onChange) {
    this.#options = options;
    this.#onChange = onChange;
  }

  get state() {
    return this.#state;
  }

  get running() {
    return this.#running;
  }

  /** Poll now, and continue to poll. */
  start() {
    this.stop();
    this.#running = true;
    document.addEventListener("visibilitychange", this.#lookedAt);
    this.#askedAt = -Infinity;
    this.#plan();
  }

  /** Stop polling, and abort the pending request; the state stays as it is. */
  stop() {
    this.#running = false;
    document.removeEventListener("visibilitychange", this.#lookedAt);
    clearTimeout(this.#timer);
    this.#request?.abort();
    this.#request = null;
  }

  #plan() {
    clearTimeout(this.#timer);
    if (!this.#running || this.#request || document.hidden) return;
    const wait = this.#askedAt + this.#intervalMs() - performance.now();
    if (wait > 0) this.#timer = setTimeout(() => this.#poll(), wait);
    else this.#poll();
  }

  #visibilityChanged() {
    if (document.hidden) clearTimeout(this.#timer);
    else this.#plan();
  }

  #intervalMs() {
    const seconds = Number(this.#options.intervalS ?? DEFAULT_INTERVAL_S);
    return 1000 * (Number.isFinite(seconds) && seconds >= INTERVAL_MIN_S ? seconds : DEFAULT_INTERVAL_S);
  }

  async #poll() {
    const request = new AbortController();
    this.#request = request;
    this.#askedAt = performance.now();
    const givenUp = setTimeout(() => request.abort(), this.#intervalMs());
    let state = HIDDEN;
    try {
      state = await Promise.race([this.#answer(request.signal), aborted(request.signal)]);
    } catch {
      // Silent by contract: the banner is an extra, its page is not.
    }
    clearTimeout(givenUp);
    if (this.#request !== request) return; // stopped, or restarted, meanwhile: this answer is obsolete
    this.#request = null;
    if (LAST_WORDS.has(state.status)) this.stop();
    this.#set(state);
    this.#plan();
  }

  async #answer(signal) {
    const { url, credentials, tokenProvider } = this.#options;
    const headers = { Accept: "application/json" };
    if (tokenProvider) {
      const token = await tokenProvider();
      if (signal.aborted) throw new Error("given up");
      if (token) headers.Authorization = `Bearer ${token}`;
    }
    const response = await fetch(url || DEFAULT_URL, {
      headers,
      signal,
      credentials: credentials || "same-origin",
      cache: "no-store",
    });
    if (!response.ok) throw new Error("refused");
    return stateOf(await response.json());
  }

  #set(state) {
    const { status, percent } = this.#state;
    if (state.status === status && state.percent === percent) return;
    this.#state = state;
    this.#onChange(state);
  }
}

/** Reject when the signal does: a token provider that never answers must not keep the poller waiting. */
function aborted(signal) {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new Error("given up")), { once: true });
  });
}

const TEXTS = {
  label: "We are importing your CRM history",
  detail: "You can keep working. Past activities appear here as they arrive.",
  "progress-label": "{percent} imported",
  announcement: "CRM history import: {percent} done",
};
const ANNOUNCE_STEP_PCT = 25;

const STYLE = `
  :host { display: block; }
  :host([theme="light"]) { color-scheme: light; }
  :host([theme="dark"]) { color-scheme: dark; }
  :host([theme="auto"]) { color-scheme: light dark; }
  [part="banner"] {
    --background: var(--crm-migration-background, #eef4ff);
    --color: var(--crm-migration-color, #14213d);
    --muted: var(--crm-migration-muted-color, #47536b);
    --border: var(--crm-migration-border-color, #c3d5f7);
    --accent: var(--crm-migration-accent-color, #2457d6);
    --track: var(--crm-migration-track-color, #d5e2fb);
    box-sizing: border-box;
    display: grid;
    grid-template-columns: auto minmax(0, 1fr) auto;
    align-items: center;
    gap: 0.25rem 0.875rem;
    padding: var(--crm-migration-padding, 0.875rem 1.125rem);
    border: 1px solid var(--border);
    border-radius: var(--crm-migration-radius, 0.75rem);
    background: var(--background);
    color: var(--color);
    font: var(--crm-migration-font, inherit);
    line-height: 1.4;
    animation: appear 240ms ease-out;
  }
  @supports (color: light-dark(#000, #fff)) {
    [part="banner"] {
      --background: var(--crm-migration-background, light-dark(#eef4ff, #14203a));
      --color: var(--crm-migration-color, light-dark(#14213d, #edf2fc));
      --muted: var(--crm-migration-muted-color, light-dark(#47536b, #aebbd3));
      --border: var(--crm-migration-border-color, light-dark(#c3d5f7, #2c4069));
      --accent: var(--crm-migration-accent-color, light-dark(#2457d6, #7ea6ff));
      --track: var(--crm-migration-track-color, light-dark(#d5e2fb, #263a62));
    }
  }
  [part="banner"][hidden] { display: none; }
  [part="icon"] { inline-size: 1.5rem; block-size: 1.5rem; color: var(--accent); display: block; }
  [part="icon"] svg { display: block; inline-size: 100%; block-size: 100%; }
  [part="label"] { display: block; font-weight: 600; }
  [part="detail"] { display: block; color: var(--muted); font-size: 0.875em; }
  [part="percent"] { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--accent); }
  [part="track"] {
    grid-column: 1 / -1;
    margin-block-start: 0.375rem;
    block-size: 0.375rem;
    border-radius: 1rem;
    background: var(--track);
    overflow: hidden;
  }
  [part="bar"] {
    block-size: 100%;
    min-inline-size: 0.375rem;
    border-radius: inherit;
    background: var(--accent);
    transition: inline-size 600ms ease-out;
  }
  .turning { transform-origin: 12px 12px; animation: turn 2.4s linear infinite; }
  .spoken { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  @media (max-width: 30rem) {
    [part="banner"] { grid-template-columns: auto minmax(0, 1fr); }
    [part="percent"] { grid-column: 2; }
  }
  @media (prefers-reduced-motion: reduce) {
    [part="banner"], .turning { animation: none; }
    [part="bar"] { transition: none; }
  }
  @media (forced-colors: active) {
    [part="track"] { border: 1px solid CanvasText; }
    [part="bar"] { background: Highlight; forced-color-adjust: none; }
  }
  @keyframes appear { from { opacity: 0; transform: translateY(-0.25rem); } }
  @keyframes turn { to { transform: rotate(360deg); } }
`;

/** Return an element with attributes and children; texts are put in as text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function makeIcon() {
  const svgNamespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(svgNamespace, "svg");
  for (const [name, value] of Object.entries({
    viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "2",
    "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true",
  })) svg.setAttribute(name, value);
  for (const [name, drawing] of [["turning", "M21 12a9 9 0 1 1-6.2-8.56"], ["", "M12 8v7m-3-3 3 3 3-3"]]) {
    const path = document.createElementNS(svgNamespace, "path");
    path.setAttribute("d", drawing);
    if (name) path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

// On a server (where a page may be rendered) there is no HTMLElement; importing this file must not fail there.
const Base = globalThis.HTMLElement ?? class {};
let sharedSheet;

/** The custom element. */
export class CrmMigrationStatus extends Base {
  static observedAttributes = [
    "src", "interval-s", "credentials", "label", "detail", "progress-label", "announcement", "announce-step", "lang",
  ];

  #tokenProvider = null;
  #parts = null;
  #announcedStep = -1;
  #poller = new MigrationStatusPoller(this.#settings(), (state) => this.#changed(state));

  #settings() {
    const host = this;
    return {
      get url() { return host.getAttribute("src"); },
      get intervalS() { return host.getAttribute("interval-s") ?? undefined; },
      get credentials() { return host.getAttribute("credentials"); },
      get tokenProvider() { return host.#tokenProvider; },
    };
  }

  /** Function that returns the session token, or a promise of it; null: the cookie is enough. */
  get tokenProvider() {
    return this.#tokenProvider;
  }

  set tokenProvider(provider) {
    this.#tokenProvider = typeof provider === "function" ? provider : null;
    if (this.isConnected && this.#parts) this.refresh();
  }

  /** What is known: {status, percent, visible}. */
  get state() {
    return this.#poller.state;
  }

  /** Poll now, also after the polling has ended. */
  refresh() {
    if (this.isConnected) this.#poller.start();
  }

  connectedCallback() {
    if (!this.#parts) this.#build();
    if (Object.hasOwn(this, "tokenProvider")) { // set before this file was loaded
      const provider = this.tokenProvider;
      delete this.tokenProvider;
      this.#tokenProvider = typeof provider === "function" ? provider : null;
    }
    this.#render(this.#poller.state);
    this.#poller.start();
  }

  disconnectedCallback() {
    this.#poller.stop();
  }

  attributeChangedCallback(name, before, after) {
    if (!this.#parts || before === after) return;
    if (name === "src" || name === "interval-s" || name === "credentials") this.refresh();
    else this.#render(this.#poller.state);
  }

  #build() {
    const root = this.attachShadow({ mode: "open" });
    if (!sharedSheet) {
      sharedSheet = new CSSStyleSheet(); // not <style>: a strict CSP refuses that
      sharedSheet.replaceSync(STYLE);
    }
    root.adoptedStyleSheets = [sharedSheet];
    const label = make("slot", { name: "label" });
    const detail = make("slot", { name: "detail" });
    const icon = make("slot", { name: "icon" }, makeIcon());
    // What changes at every poll is not live; a screen reader reads `spoken`, which changes once in a step.
    const percent = make("span", { part: "percent", "aria-live": "off" });
    const bar = make("div", { part: "bar" });
    const spoken = make("span", { class: "spoken" });
    const banner = make(
      "div", { part: "banner", hidden: "" },
      make("span", { part: "icon", "aria-hidden": "true" }, icon),
      make("div", { part: "text" }, make("span", { part: "label" }, label), make("span", { part: "detail" }, detail)),
      percent,
      make("div", { part: "track", "aria-hidden": "true" }, bar),
    );
    // The live region is there from the beginning, empty: one that comes together with its text is often not read.
    root.append(make("div", { role: "status", "aria-live": "polite", "aria-atomic": "false" }, banner, spoken));
    this.#parts = { banner, label, detail, percent, bar, spoken };
  }

  #changed(state) {
    this.#render(state);
    this.dispatchEvent(new CustomEvent("crm-migration-change", { detail: state }));
  }

  #render(state) {
    const { banner, label, detail, percent, bar, spoken } = this.#parts;
    this.toggleAttribute("active", state.visible);
    banner.hidden = !state.visible;
    if (!state.visible) {
      this.#announcedStep = -1;
      for (const part of [label, detail, percent, spoken]) part.textContent = "";
      return;
    }
    const whole = Math.floor(state.percent); // 100 % is not shown before it is reached
    const shown = this.#percentText(whole);
    put(label, this.#text("label"));
    put(detail, this.#text("detail"));
    put(percent, this.#text("progress-label").replaceAll("{percent}", shown));
    bar.style.inlineSize = `${state.percent}%`;
    const step = Math.floor(whole / (Number(this.getAttribute("announce-step")) || ANNOUNCE_STEP_PCT));
    const announces = step !== this.#announcedStep;
    this.#announcedStep = step;
    put(spoken, announces ? this.#text("announcement").replaceAll("{percent}", shown) : "");
  }

  #text(name) {
    return this.getAttribute(name) ?? TEXTS[name];
  }

  #percentText(whole) {
    const language = this.closest("[lang]")?.lang || undefined;
    try {
      return new Intl.NumberFormat(language, { style: "percent" }).format(whole / 100);
    } catch {
      return `${whole}%`; // a `lang` that is no language tag
    }
  }
}

/** Set a text only if it differs: a text that is set is read aloud again. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

if (globalThis.customElements && !customElements.get("crm-migration-status")) {
  customElements.define("crm-migration-status", CrmMigrationStatus);
}
