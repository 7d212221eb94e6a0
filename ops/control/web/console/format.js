// Numbers, spans and times as people read them. Times are the reader's own; UTC is in the title.

const NUMBER = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const DATE_TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
export const UNKNOWN = "–";

let clockOffsetMs = 0;

/** Take over the server's clock: ages are shown against it, not against this machine's. */
export function setServerClock(now) {
  clockOffsetMs = Date.parse(now) - Date.now();
}

export function serverNow() {
  return Date.now() + clockOffsetMs;
}

export function number(value) {
  return value === null || value === undefined ? UNKNOWN : NUMBER.format(value);
}

export function shortNumber(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return Math.abs(value) < 100_000 ? NUMBER.format(value) : SHORT.format(value);
}

/** «1 row», «1,204 rows». */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

/** Per cent, cut and not rounded: 100 % means all. */
export function percent(value, digits = 1) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value === 100) return "100 %";
  const scale = 10 ** digits;
  return `${(Math.floor(value * scale + 1e-9) / scale).toFixed(digits)} %`;
}

export function share(part, whole) {
  if (!whole) return UNKNOWN;
  const value = (100 * part) / whole;
  return part > 0 && value < 0.1 ? "< 0.1 %" : percent(value);
}

export function rate(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return `${NUMBER.format(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))} rows/s`;
}

/** A span of time: «42 s», «3 min 05 s», «2 h 14 min», «1 d 3 h». */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return UNKNOWN;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${NUMBER.format(Math.floor(whole / 86_400))} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** A span of time in its largest unit: «42 s», «3 min», «2 h», «4 d». */
export function roughSpan(seconds) {
  const [size, unit] = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([least]) => seconds >= least) ?? [1, "s"];
  return `${NUMBER.format(Math.max(1, Math.round(seconds / size)))} ${unit}`;
}

export function bytes(value) {
  for (const [size, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
  }
  return `${NUMBER.format(value)} B`;
}

export function dateTime(iso) {
  return DATE_TIME.format(new Date(iso));
}

export function timeOfDay(milliseconds) {
  return TIME.format(new Date(milliseconds));
}

/** The same moment in UTC, for the title of what shows it in local time. */
export function utc(iso) {
  return `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** «just now», «40 s ago», «3 min ago», «2 h ago», «5 d ago». */
export function age(iso, nowMs = serverNow()) {
  const seconds = Math.floor((nowMs - Date.parse(iso)) / 1000);
  if (seconds < 2) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${NUMBER.format(Math.floor(seconds / 86_400))} d ago`;
}
