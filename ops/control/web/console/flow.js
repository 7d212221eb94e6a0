// The picture of the flow: source, processes, topics, target, and their lag. A table has the same numbers.

import { h, s, setAttribute, setText } from "./dom.js";
import { number, percent, roughSpan, shortNumber, UNKNOWN } from "./format.js";

const WIDE = matchMedia("(min-width: 62rem)"); // below it, the picture stands upright
const LATE_AFTER_S = 60; // a queue that takes longer than this at the present rate needs attention

const BOXES = [
  { id: "source", kind: "store", title: "Source" },
  { id: "producer", kind: "process", title: "Producer" },
  { id: "replay", kind: "topic", title: "Replay topic" },
  { id: "processors", kind: "process", title: "Processors" },
  { id: "outcomes", kind: "topic", title: "Outcomes" },
  { id: "sink", kind: "process", title: "Sink" },
  { id: "target", kind: "store", title: "MongoDB" },
];

/** Return the contents of each box: {lines: [big, small], tone, part} by id. Pure. */
export function contentsOf(detail) {
  const stage = Object.fromEntries(detail.stages.map((one) => [one.name, one]));
  const job = detail.job;
  const pace = detail.pace?.rows_per_s;
  const running = detail.status === "in_progress" && !job?.waiting;
  const queue = (one) => {
    if (!one || one.waiting === null) return { lines: [UNKNOWN, "lag not known"], tone: "quiet" };
    const behindS = one.waiting && pace ? one.waiting / pace : null;
    const small = !one.waiting ? "no lag" : behindS === null || !running ? "waiting" : `waiting, ≈ ${roughSpan(behindS)}`;
    const late = one.waiting > 0 && (behindS !== null && running ? behindS > LATE_AFTER_S : !running && detail.status === "in_progress");
    return { lines: [shortNumber(one.waiting), small], tone: !one.waiting ? "quiet" : late ? "warn" : "busy" };
  };
  const done = (one, what) => ({ lines: [shortNumber(one?.done), what], tone: "plain" });
  const producer = stage.producer;
  // The processors are not counted; their rows are those read that no longer wait for them.
  const passed = (one) => {
    if (!one || one.done !== null || one.waiting === null || !Number.isFinite(producer?.done)) return one?.done;
    return Math.max(stage.sink?.done ?? 0, producer.done - one.waiting, 0);
  };
  const part = producer?.total ? Math.min(1, (producer.done ?? 0) / producer.total) : null;
  return {
    source: { lines: [shortNumber(producer?.total ?? job?.records_total), "rows in scope"], tone: "plain" },
    producer: { ...done(producer, part === null ? "rows read" : `rows read, ${percent(part * 100, 0)}`), part },
    replay: queue(stage.processors),
    processors: { lines: [shortNumber(passed(stage.processors)), "transformed"], tone: "plain" },
    outcomes: queue(stage.sink),
    sink: done(stage.sink, "outcomes counted"),
    target: { lines: [shortNumber(job?.records_migrated), "logs written"], tone: "plain" },
    letters: {
      lines: [shortNumber(stage.dead_letters?.waiting), stage.dead_letters?.waiting === 1 ? "dead letter" : "dead letters"],
      tone: stage.dead_letters?.waiting ? "bad" : "quiet",
    },
    running: running && !(pace === 0),
  };
}

/** Return the picture as a sentence. Pure. */
export function summaryOf(contents) {
  const text = (id) => `${contents[id].lines[0]} ${contents[id].lines[1]}`;
  return (
    `Flow of the replay. Source: ${text("source")}. Producer: ${text("producer")}. Before the processors: ${text("replay")}. ` +
    `Processors: ${text("processors")}. Before the sink: ${text("outcomes")}. Sink: ${text("sink")}. ` +
    `MongoDB: ${text("target")}. Dead letters: ${contents.letters.lines[0]}.`
  );
}

function wideLayout() {
  const width = 136, gap = 28, height = 92, top = 8;
  const places = Object.fromEntries(BOXES.map((box, at) => [box.id, { x: at * (width + gap), y: top, width, height }]));
  places.letters = { x: 4 * (width + gap) - 26, y: 148, width: width + 52, height: 60 };
  const middle = top + height / 2;
  const pipes = BOXES.slice(1).map((_, at) => `M${at * (width + gap) + width} ${middle}H${(at + 1) * (width + gap)}`);
  const lettersTop = places.letters.y, letters = places.letters;
  const leave = (id, end) => `M${places[id].x + width / 2} ${top + height}V${lettersTop + 30}H${end}`;
  const branches = [leave("processors", letters.x), leave("sink", letters.x + letters.width)];
  return { view: [7 * width + 6 * gap, 212], places, pipes, branches };
}

function tallLayout() {
  const width = 208, height = 72, gap = 26, left = 2;
  const places = Object.fromEntries(BOXES.map((box, at) => [box.id, { x: left, y: 4 + at * (height + gap), width, height }]));
  const end = 4 + 7 * height + 6 * gap;
  const pipes = BOXES.slice(1).map((_, at) => `M${left + width / 2} ${4 + at * (height + gap) + height}v${gap}`);
  const out = (id) => `M${left + width} ${places[id].y + height / 2}H300V${end + 26}`;
  const branches = [out("processors"), out("sink")];
  places.letters = { x: 120, y: end + 26, width: 196, height: 60 };
  return { view: [320, end + 90], places, pipes, branches };
}

function outline(kind, { x, y, width, height }) {
  if (kind === "store") {
    const rx = width / 2, ry = 9;
    return [
      s("path", {
        class: "shape",
        d: `M${x} ${y + ry}a${rx} ${ry} 0 0 1 ${width} 0v${height - 2 * ry}a${rx} ${ry} 0 0 1 ${-width} 0Z`,
      }),
      s("path", { class: "rim", d: `M${x} ${y + ry}a${rx} ${ry} 0 0 0 ${width} 0` }),
    ];
  }
  return [s("rect", { class: "shape", x, y, width, height, rx: kind === "topic" ? height / 2.6 : 10 })];
}

function drawBox({ id, kind, title }, place, texts) {
  const { x, y, width, height } = place;
  const centre = x + width / 2;
  const compact = height < 80;
  const lines = { letters: [null, 26, 45], store: compact ? [31, 50, 64] : [36, 59, 77] }[kind] ?? (compact ? [20, 40, 56] : [28, 53, 72]);
  const big = s("text", { class: "flow-number", x: centre, y: y + lines[1] });
  const small = s("text", { class: "flow-note", x: centre, y: y + lines[2] });
  const group = s("g", { class: `flow-box flow-${kind}` }, outline(kind, place));
  if (lines[0] !== null) group.append(s("text", { class: "flow-title", x: centre, y: y + lines[0] }, title));
  group.append(big, small);
  if (id === "producer") {
    const inset = 14, room = width - 2 * inset;
    const bar = s("rect", { class: "flow-bar", x: x + inset, y: y + height - 8, width: 0, height: 4, rx: 2 });
    group.append(s("rect", { class: "flow-track", x: x + inset, y: y + height - 8, width: room, height: 4, rx: 2 }), bar);
    texts.bar = { bar, room };
  }
  texts[id] = { group, big, small };
  return group;
}

/** The card with the picture and its table. */
export function flowView() {
  const picture = h("div", { class: "flow" });
  const body = h("tbody", {});
  const table = h(
    "details", { class: "more" },
    h("summary", {}, "The same in a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Stages in a table" },
      h("table", { class: "table" },
        h("thead", {}, h("tr", {}, ["Stage", "Reads from", "Done", "Of", "Waiting"].map((text, at) =>
          h("th", { scope: "col", class: at > 1 ? "number" : null }, text)))),
        body)),
  );
  const node = h("section", { class: "card", "aria-labelledby": "flow-title" },
    h("div", { class: "card-head" }, h("h2", { id: "flow-title" }, "Flow"), h("p", { class: "card-note" }, "Rows that have passed each stage, and the lag before it")),
    picture, table);
  let texts, drawing, last;

  function draw() {
    const layout = WIDE.matches ? wideLayout() : tallLayout();
    texts = {};
    drawing = s("svg", { viewBox: `-1 0 ${layout.view[0] + 2} ${layout.view[1]}`, role: "img", class: WIDE.matches ? "flow-wide" : "flow-tall" },
      layout.pipes.map((d) => s("path", { class: "pipe", d })),
      layout.branches.map((d) => s("path", { class: "pipe pipe-branch", d })),
      BOXES.map((box) => drawBox(box, layout.places[box.id], texts)),
      drawBox({ id: "letters", kind: "letters", title: "" }, layout.places.letters, texts));
    picture.replaceChildren(drawing);
    if (last) update(last);
  }

  function update(detail) {
    last = detail;
    const contents = contentsOf(detail);
    setAttribute(drawing, "aria-label", summaryOf(contents));
    drawing.classList.toggle("is-flowing", contents.running);
    for (const [id, { group, big, small }] of Object.entries(texts)) {
      if (id === "bar") continue;
      setText(big, contents[id].lines[0]);
      setText(small, contents[id].lines[1]);
      setAttribute(group, "data-tone", contents[id].tone);
    }
    setAttribute(texts.bar.bar, "width", (contents.producer.part ?? 0) * texts.bar.room);
    const names = { producer: "Producer", processors: "Processors", sink: "Sink", dead_letters: "Dead letters" };
    body.replaceChildren(...detail.stages.map((stage) => h("tr", {},
      h("th", { scope: "row" }, names[stage.name] ?? stage.name),
      h("td", { class: "code" }, stage.topic ?? "source database"),
      h("td", { class: "number" }, number(stage.done)),
      h("td", { class: "number" }, number(stage.total)),
      h("td", { class: "number" }, number(stage.waiting)))));
  }

  const redraw = () => draw();
  WIDE.addEventListener("change", redraw);
  draw();
  return { node, update, close: () => WIDE.removeEventListener("change", redraw) };
}
