// Elements from values. Whatever comes from the server becomes a text node or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Return an HTML element: attributes (`on`: listeners, `data`: dataset), then children, elements or texts. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Set a text if it is another one; what does not change is neither painted nor read aloud again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set or (null) remove an attribute if that changes something. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** Return `draw(value)` that calls `render(value)` only when the value differs from the last one. */
export function whenChanged(render) {
  let before;
  return (value) => {
    const now = JSON.stringify(value);
    if (now === before) return;
    before = now;
    render(value);
  };
}

const ICONS = {
  ok: ["M20 6 9 17l-5-5"],
  warn: ["M12 9v4", "M12 17h.01", "M10.300 3.900 1.800 18a2 2 0 0 0 1.700 3h17a2 2 0 0 0 1.700-3L13.700 3.900a2 2 0 0 0-3.400 0Z"],
  fail: ["M18 6 6 18", "m6 6 12 12"],
  info: ["M12 16v-4", "M12 8h.01", "M22 12a10 10 0 1 1-20 0 10 10 0 0 1 20 0Z"],
  back: ["m15 18-6-6 6-6"],
  search: ["m21 21-4.300-4.300", "M19 11a8 8 0 1 1-16 0 8 8 0 0 1 16 0Z"],
};

/** Return one of the drawn icons; it is hidden from assistive technology, which reads the text beside it. */
export function icon(name) {
  return s(
    "svg",
    { class: `icon icon-${name}`, viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    ICONS[name].map((d) => s("path", { d })),
  );
}

const ANNOUNCED_MS = 20_000;

/** Announce to assistive technology what is shown elsewhere on the page. Lines add up, so that two at once are
 * both read; each goes when it is old, and who comes by later reads no news of yesterday. */
export function announce(text) {
  const line = h("p", {}, text);
  document.getElementById("announcer").append(line);
  setTimeout(() => line.remove(), ANNOUNCED_MS);
}

/** Show a message at the edge of the page for a while; errors stay until they are dismissed. */
export function toast(text, kind = "ok") {
  const place = document.getElementById("toasts");
  const close = h("button", { type: "button", class: "toast-close", "aria-label": "Dismiss" }, icon("fail"));
  const note = h("div", { class: `toast toast-${kind}` }, icon(kind === "bad" ? "warn" : "ok"), h("p", {}, text), close);
  close.addEventListener("click", () => note.remove());
  place.append(note);
  if (kind !== "bad") setTimeout(() => note.remove(), 8000);
}
