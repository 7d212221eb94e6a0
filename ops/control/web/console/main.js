// Wiring: which view the address names, live data into it, and how fresh that is.

import { accountView } from "./account.js";
import { accountsView } from "./accounts.js";
import { api } from "./api.js";
import { h, icon, setText, toast } from "./dom.js";
import { setServerClock, timeOfDay } from "./format.js";
import { Live } from "./live.js";
import { keepAges } from "./times.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const connectionText = document.getElementById("connection-text");
const staleBar = document.getElementById("stale-bar");
let view = null;

const TEXT = {
  connecting: () => "Connecting…",
  live: () => "Live",
  polling: () => "Every 5 s",
  reconnecting: () => "Reconnecting…",
  stale: (since) => `Stale since ${since}`,
  "signed-out": () => "Signed out",
};

function showState({ state, heardAt, message }) {
  const since = heardAt === null ? "the beginning" : timeOfDay(heardAt);
  connection.dataset.state = state;
  setText(connectionText, TEXT[state](since));
  staleBar.hidden = state !== "stale" && state !== "signed-out";
  if (state === "stale") {
    const what = message ? `The server cannot read the status: ${message.replace(/[.]?$/, ".")}` : "The server does not respond.";
    const old = heardAt === null ? "Check that the control plane, MongoDB and Kafka are running" : `The data shown are from ${since}`;
    setText(staleBar, `${what} ${old}; this page tries again by itself.`);
  } else if (state === "signed-out") setText(staleBar, "You are signed out. Reload the page to sign in again.");
}

const live = new Live((name, data) => view?.update(name, data), showState);

function route() {
  const found = /^#\/account\/(.+)$/.exec(location.hash);
  let account = null;
  if (found) {
    try {
      account = decodeURIComponent(found[1]);
    } catch {
      toast("This address names no account.", "bad");
    }
  }
  if (view !== null && view.account === account) return;
  const first = view === null;
  view?.close();
  view = account === null ? accountsView() : accountView(account, live);
  document.title = `${view.title} · CRM audit replay`;
  main.replaceChildren(view.node);
  if (!first) {
    scrollTo(0, 0);
    main.querySelector("h1").focus();
  }
  live.watch(account);
}

async function whoAmI() {
  try {
    const session = await api.session();
    setServerClock(session.now);
    document.getElementById("who").replaceChildren(h("span", { class: "visually-hidden" }, "Signed in as "), session.user);
    document.getElementById("who").title = `Version ${session.version}`;
  } catch (error) {
    if (error.status === 401) showState({ state: "signed-out", heardAt: null });
    // Else the live data show it: they do not arrive either.
  }
}

document.querySelector(".skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // the address's hash names the view
  main.focus();
});
addEventListener("hashchange", route);
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  main.prepend(h("div", { class: "notice notice-bad" }, icon("warn"), h("p", {}, "An error occurred on this page. Reload it; nothing has changed on the server.")));
});
keepAges();
void whoAmI();
route();
