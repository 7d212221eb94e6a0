// Small parts that several views share.

import { h, setText } from "./dom.js";
import { STATUS, words } from "./words.js";

/** Return a badge with a status; `set(status)` changes it. */
export function badge(status) {
  const text = h("span", {});
  const node = h("span", { class: "badge" }, h("span", { class: "badge-dot", "aria-hidden": "true" }), text);
  const set = (value) => {
    const { label, tone } = STATUS[value] ?? { label: words(value), tone: "quiet" };
    setText(text, label);
    node.dataset.tone = tone;
  };
  set(status);
  return { node, set };
}

/** Return a badge of a fixed tone. */
export function pill(label, tone) {
  return h("span", { class: "badge", data: { tone } }, h("span", { class: "badge-dot", "aria-hidden": "true" }), h("span", {}, label));
}

/** Return a progress bar with a name; `set(percent or null, text)` moves it. */
export function meter(label) {
  const bar = h("div", { class: "meter-bar" });
  const node = h("div", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, bar);
  const set = (percent, tone = "busy") => {
    if (percent === null) node.removeAttribute("aria-valuenow");
    else node.setAttribute("aria-valuenow", String(Math.floor(percent)));
    node.classList.toggle("is-unknown", percent === null);
    bar.style.width = percent === null ? "" : `${percent}%`;
    node.dataset.tone = tone;
  };
  return { node, set };
}

/** Return what stands where there is nothing to show: what that means, and what to do. */
export function empty(title, text, ...more) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), text ? h("p", {}, text) : null, ...more);
}

/** Return a table in a box that scrolls sideways where it has to; reachable by keyboard. */
export function scrolled(label, table) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}
