// <time> elements: local time with UTC in the title, or an age that is kept true.

import { h, setText } from "./dom.js";
import { age, dateTime, UNKNOWN, utc } from "./format.js";

/** Return a moment in local time; UTC in its title. */
export function moment(iso) {
  if (!iso) return h("span", { class: "muted" }, UNKNOWN);
  return h("time", { datetime: iso, title: utc(iso) }, dateTime(iso));
}

/** Return a moment as its age, which the page keeps true; local time and UTC in its title. */
export function ago(iso) {
  if (!iso) return h("span", { class: "muted" }, UNKNOWN);
  return h("time", { datetime: iso, title: `${dateTime(iso)} · ${utc(iso)}`, data: { age: "" } }, age(iso));
}

/** Keep every age on the page true. */
export function keepAges() {
  setInterval(() => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("time[data-age]")) setText(element, age(element.dateTime));
  }, 1000);
}
