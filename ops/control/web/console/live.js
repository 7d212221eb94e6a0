// Live data: server-sent events, or polling where the server accepts no more listeners; and the data's age.

import { api } from "./api.js";
import { serverNow } from "./format.js";

const STALE_AFTER_MS = 10_000; // without a connection for so long, the data are stale
const BEATS_MISSED_MS = 40_000; // the server sends one every 15 s
const POLL_EVERY_MS = 5_000;
const AGAIN_FIRST_MS = 1_000;
const AGAIN_MOST_MS = 30_000;

/**
 * Follows one account, or all.
 *
 * `onData(name, data)` gets `account` or `accounts` events; `onState({state, heardAt})` one of connecting, live,
 * polling, reconnecting, stale (with
 * a `message` where the server has sent the reason), signed-out. Pauses while the tab is hidden: a
 * browser has few connections.
 */
export class Live {
  #onData;
  #onState;
  #account = null;
  #watching = false;
  #source = null;
  #state = "connecting";
  #heardAt = null; // when what is shown was true
  #lostAt = null;
  #beatAt = null; // null: this server sends none
  #again = AGAIN_FIRST_MS;
  #againTimer;
  #pollTimer;
  #generation = 0;

  constructor(onData, onState) {
    this.#onData = onData;
    this.#onState = onState;
    setInterval(() => this.#watchdog(), 1000);
    document.addEventListener("visibilitychange", () => {
      if (!this.#watching) return;
      if (document.hidden) this.#close();
      else this.#open();
    });
    addEventListener("online", () => {
      if (this.#watching && this.#state !== "live") this.#open();
    });
  }

  /** Follow this account; null: all of them. */
  watch(account) {
    this.#account = account;
    this.#watching = true;
    this.#heardAt = null;
    this.#lostAt = null;
    this.#again = AGAIN_FIRST_MS;
    this.#setState("connecting");
    this.#open();
  }

  /** Poll once now: after an action, the page need not wait for the next event. */
  async refresh() {
    const generation = this.#generation;
    try {
      const data = this.#account === null ? await allAccounts() : await api.account(this.#account);
      if (generation === this.#generation) this.#received(this.#account === null ? "accounts" : "account", data);
      return true;
    } catch (error) {
      if (error.status === 401) this.#signedOut();
      return false;
    }
  }

  #open() {
    this.#close();
    if (document.hidden) return;
    const source = new EventSource(api.eventsUrl(this.#account));
    this.#source = source;
    this.#beatAt = null;
    const receive = (event) => {
      this.#beatAt &&= Date.now();
      this.#again = AGAIN_FIRST_MS;
      this.#received(event.type, JSON.parse(event.data));
      this.#setState("live");
    };
    source.addEventListener("account", receive);
    source.addEventListener("accounts", receive);
    source.addEventListener("beat", () => {
      this.#beatAt = Date.now();
      this.#again = AGAIN_FIRST_MS;
    });
    source.addEventListener("open", () => {
      clearTimeout(this.#pollTimer);
      if (this.#heardAt !== null) this.#setState("live");
    });
    source.addEventListener("bye", () => this.#lost());
    source.addEventListener("trouble", (event) => {
      this.#beatAt &&= Date.now();
      this.#troubled(JSON.parse(event.data).message);
    });
    source.addEventListener("error", () => {
      this.#lost();
      if (source.readyState === EventSource.CLOSED) this.#refused(); // else the browser tries again by itself
    });
  }

  #close() {
    this.#generation += 1;
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#againTimer);
    clearTimeout(this.#pollTimer);
  }

  #lost() {
    // Until now, or until the last beat, what is shown was true: only changes are sent.
    if (this.#state === "live") this.#heardAt = this.#beatAt === null ? serverNow() : serverNow() - (Date.now() - this.#beatAt);
    this.#lostAt ??= Date.now();
    if (this.#state !== "polling" && this.#state !== "stale") this.#setState("reconnecting");
  }

  // The server is there but cannot see what it should show.
  #troubled(message) {
    this.#lostAt ??= Date.now();
    this.#state = "stale";
    this.#onState({ state: "stale", heardAt: this.#heardAt, message });
  }

  // No place for another listener, no right, or a proxy that allows no such connections: poll, and try again later.
  #refused() {
    const generation = this.#generation;
    this.#againTimer = setTimeout(() => this.#open(), Math.max(this.#again, AGAIN_FIRST_MS));
    this.#again = Math.min(this.#again * 2, AGAIN_MOST_MS);
    const poll = async () => {
      if (generation !== this.#generation) return;
      if (await this.refresh()) {
        if (generation !== this.#generation) return;
        this.#again = AGAIN_MOST_MS; // it answers, it only has no place
        clearTimeout(this.#againTimer);
        this.#againTimer = setTimeout(() => this.#open(), AGAIN_MOST_MS);
        this.#setState("polling");
        this.#pollTimer = setTimeout(pollOn, POLL_EVERY_MS);
      }
    };
    const pollOn = async () => {
      if (generation !== this.#generation) return;
      const answered = await this.refresh();
      if (generation !== this.#generation) return; // a connection was opened meanwhile and sets the state
      if (answered) this.#setState("polling");
      else this.#lost();
      this.#pollTimer = setTimeout(pollOn, POLL_EVERY_MS);
    };
    void poll();
  }

  #signedOut() {
    this.#close();
    this.#watching = false;
    this.#setState("signed-out");
  }

  #received(name, data) {
    this.#heardAt = serverNow();
    this.#onData(name, data);
  }

  #watchdog() {
    if (!this.#watching || document.hidden) return;
    if (this.#beatAt !== null && Date.now() - this.#beatAt > BEATS_MISSED_MS) {
      this.#lost();
      this.#open(); // half open: the other side has gone without closing
    }
    const lost = this.#lostAt !== null && Date.now() - this.#lostAt > STALE_AFTER_MS;
    if (lost && this.#state !== "stale" && this.#state !== "live") this.#setState("stale");
  }

  #setState(state) {
    if (state === "live" || state === "polling") this.#lostAt = null;
    this.#state = state;
    this.#onState({ state, heardAt: this.#heardAt });
  }
}

async function allAccounts() {
  const accounts = [];
  let cursor = null;
  do {
    const page = await api.accounts({ cursor, limit: 500 });
    accounts.push(...page.accounts);
    cursor = page.next_cursor;
  } while (cursor);
  return { complete: true, accounts };
}
