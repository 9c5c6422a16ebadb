"use strict";
// Charts of the page: drawn as SVG from the JSON in #data. All text goes through textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const AXES = { step: "steps", tokens: "tokens", seconds: "time" };
const MARGIN = { left: 56, right: 12, top: 10, bottom: 26 };
const several = data.runs.length > 1;
const state = {
  axis: "step",
  smooth: 0.8,
  zoom: null, // [from, to] on the axis
  hidden: new Set(), // numbers of runs
  log: new Set(data.charts.filter((chart) => chart.log).map((chart) => chart.name)),
};

// ---- small tools -----------------------------------------------------------------------------

function add(parent, name, attributes = {}, text = null) {
  const space = parent.namespaceURI.includes("svg") || name === "svg";
  const made = space
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  for (const [unit, factor] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]])
    if (size >= factor) return `${Number((value / factor).toPrecision(3))} ${unit}`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  const s = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${Number(seconds.toFixed(1))}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${two(Math.floor((s % 3600) / 60))}m`;
  return `${Math.floor(s / 86400)}d${two(Math.floor((s % 86400) / 3600))}h`;
}

const onAxis = (value, axis) => (axis === "seconds" ? duration(value) : short(value));

// Round steps of 1, 2 or 5 (in time: of what people count in) that cut [low, high] in about `count`.
function ticks(low, high, count, time = false) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  if (time && rough > 1)
    step = [2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400]
      .find((n) => n >= rough) || Math.ceil(rough / 86400) * 86400;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low), found = [];
  const digits = decades > 4 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const digit of digits) found.push(digit * 10 ** power);
  const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, 5);
}

// The mean of what came before, weighted by `smooth` to the power of how long ago.
function smoothed(values, smooth) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = sum * smooth + value;
    weight = weight * smooth + 1;
    return sum / weight;
  });
}

// Which element of ascending `values` is nearest to `x`.
function nearest(values, x) {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - values[low - 1] < values[low] - x ? low - 1 : low;
}

// ---- a chart ---------------------------------------------------------------------------------

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.figure = document.getElementById(`chart-${spec.name}`);
    const caption = this.figure.querySelector("figcaption");
    if (spec.unit) add(caption, "small", {}, ` ${spec.unit}`);
    if (spec.log !== null) this.logToggle(caption);
    this.svg = add(this.figure, "svg", { role: "img", "aria-label": spec.title });
    this.tip = add(this.figure, "div", { class: "tip", hidden: "" });
    this.legend();
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerleave", () => charts.forEach((chart) => chart.leave()));
    this.svg.addEventListener("pointerdown", (event) => {
      if (this.span) this.from = this.toX(event); // there is a scale, since something is drawn
    });
    this.svg.addEventListener("pointerup", (event) => this.select(event));
    this.svg.addEventListener("dblclick", () => zoom(null));
  }

  logToggle(caption) {
    const log = add(add(caption, "label", { class: "log" }, "log "), "input", { type: "checkbox" });
    log.checked = state.log.has(this.spec.name);
    log.addEventListener("change", () => {
      if (log.checked) state.log.add(this.spec.name); else state.log.delete(this.spec.name);
      this.draw();
    });
  }

  // One run: a colour for each figure. Several: a colour for each run.
  colour(run, number) { return `c${(several ? run : number) % 8}`; }

  legend() {
    const entries = Object.entries(this.spec.lines).filter(([key]) => data.runs.some((run) => run.curves[key]));
    if (entries.length < 2) return;
    const list = add(this.figure, "p", { class: "legend" });
    entries.forEach(([key, label]) => {
      const number = Object.keys(this.spec.lines).indexOf(key);
      add(list, "span", { class: `key ${several ? `k${number}` : `c${number % 8}`}` }, label);
    });
  }

  // What is to be drawn now: {run, key, label, number, x, y, shown}, y as it is read off the axis.
  series() {
    const found = [], log = state.log.has(this.spec.name);
    data.runs.forEach((run, index) => {
      if (state.hidden.has(index)) return;
      Object.entries(this.spec.lines).forEach(([key, label], number) => {
        const curve = run.curves[key];
        if (!curve || !curve[state.axis]) return;
        const means = curve.mean || curve.value; // of thinned curves: a mean of extremes says little
        const keep = curve.value.map((value, i) => !log || (value > 0 && means[i] > 0));
        const kept = (values) => values.filter((_, i) => keep[i]);
        const [x, y, mean] = [curve[state.axis], curve.value, means].map(kept);
        const noisy = key === "loss" || key === "grad_norm", scaled = (value) => value * this.spec.factor;
        const shown = noisy && state.smooth > 0 ? smoothed(mean, state.smooth) : y;
        if (x.length) found.push({ run: index, key, label, number, x, y: y.map(scaled), shown: shown.map(scaled), noisy });
      });
    });
    return found;
  }

  draw() {
    this.svg.replaceChildren();
    this.found = this.series();
    this.width = Math.max(260, this.figure.clientWidth - 24);
    this.height = this.spec.name === "loss" ? Math.max(260, Math.min(420, this.width * 0.45)) : 190;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    if (!this.found.length) return;
    this.scales();
    this.grid();
    this.drawMarks();
    this.found.forEach((line) => this.drawLine(line));
    this.cross = add(this.svg, "g", { class: "cross" });
  }

  scales() {
    const all = this.found.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const [left, right] = state.zoom || [Math.min(...all), Math.max(...all)];
    let low = Infinity, high = -Infinity;
    for (const line of this.found)
      line.x.forEach((_, i) => {
        // those beside the window count, too: between two points there may be none in it
        const before = line.x[Math.max(0, i - 1)], after = line.x[Math.min(i + 1, line.x.length - 1)];
        if (after < left || before > right) return;
        // raw values stand behind: of a smoothed line the first ones count, and not each spike
        const value = line.noisy && line.key !== "loss" ? line.shown[i] : line.y[i];
        low = Math.min(low, value);
        high = Math.max(high, value);
      });
    const log = state.log.has(this.spec.name);
    if (low > high) [low, high] = log ? [1, 10] : [0, 1];
    if (this.spec.zero && !log) low = Math.min(0, low);
    const pad = log ? 0 : (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    [low, high] = log ? [low / 1.05, high * 1.05] : [low === 0 ? 0 : low - pad, high + pad];
    const wide = this.width - MARGIN.left - MARGIN.right, tall = this.height - MARGIN.top - MARGIN.bottom;
    const y = log ? Math.log : (value) => value;
    this.span = { left, right: right > left ? right : left + 1, low, high, log };
    this.px = (x) => MARGIN.left + ((x - left) / (this.span.right - left)) * wide;
    this.py = (value) => MARGIN.top + ((y(high) - y(value)) / (y(high) - y(low))) * tall;
    this.wide = wide;
  }

  grid() {
    const { left, right, low, high, log } = this.span, bottom = this.height - MARGIN.bottom;
    const group = add(this.svg, "g", { class: "grid" });
    for (const value of log ? logTicks(low, high) : ticks(low, high, 5)) {
      const y = this.py(value).toFixed(1);
      add(group, "path", { d: `M${MARGIN.left} ${y}H${this.width - MARGIN.right}` });
      add(group, "text", { x: MARGIN.left - 6, y: Number(y) + 4, "text-anchor": "end" }, short(value));
    }
    for (const value of ticks(left, right, Math.max(2, this.wide / 110), state.axis === "seconds")) {
      const x = this.px(value);
      add(group, "path", { d: `M${x.toFixed(1)} ${bottom}v4` });
      const anchor = x > this.width - 30 ? "end" : "middle";
      add(group, "text", { x: x.toFixed(1), y: bottom + 17, "text-anchor": anchor }, onAxis(value, state.axis));
    }
    const clip = add(add(this.svg, "defs"), "clipPath", { id: `clip-${this.spec.name}` });
    add(clip, "rect", { x: MARGIN.left - 3, y: 0, width: this.wide + 6, height: this.height });
  }

  drawMarks() {
    const group = add(this.svg, "g", { class: "marks", "clip-path": `url(#clip-${this.spec.name})` });
    data.runs.forEach((run, index) => {
      if (state.hidden.has(index)) return;
      for (const mark of run.marks) {
        if (mark[state.axis] === undefined || ["start", "done"].includes(mark.kind)) continue;
        const x = this.px(mark[state.axis]).toFixed(1), bottom = this.height - MARGIN.bottom;
        const d = mark.kind === "save" ? `M${x} ${bottom}v-6` : `M${x} ${MARGIN.top}V${bottom}`;
        add(add(group, "path", { d, class: `mark ${mark.kind}` }), "title", {}, [mark.event, mark.text].join(" "));
      }
    });
  }

  drawLine(line) {
    const colour = this.colour(line.run, line.number), clip = `url(#clip-${this.spec.name})`;
    const group = add(this.svg, "g", { class: `line ${colour} ${several ? `k${line.number}` : ""}`, "clip-path": clip });
    const path = (values, kind) => add(group, "path", {
      class: kind,
      "data-run": line.run, "data-key": line.key, "data-points": values.length,
      d: values.map((value, i) => `${i ? "L" : "M"}${this.px(line.x[i]).toFixed(1)} ${this.py(value).toFixed(1)}`).join(""),
    });
    if (line.noisy && state.smooth > 0) path(line.y, "raw");
    path(line.shown, line.key.startsWith("expected") || line.key.endsWith("_ema") ? "dashed" : "curve");
    const sparse = line.key.startsWith("val_") || line.x.length < 3;
    if (sparse && line.x.length <= 150)
      line.x.forEach((x, i) => add(group, "circle", { cx: this.px(x).toFixed(1), cy: this.py(line.shown[i]).toFixed(1), r: 2.6 }));
  }

  // ---- the pointer ----

  toX(event) {
    const box = this.svg.getBoundingClientRect(), { left, right } = this.span;
    const x = (event.clientX - box.left) * (this.width / box.width);
    return left + ((x - MARGIN.left) / this.wide) * (right - left);
  }

  move(event) {
    if (!this.found.length) return;
    const x = Math.max(this.span.left, Math.min(this.span.right, this.toX(event)));
    const base = this.found.reduce((most, line) => (line.x.length > most.x.length ? line : most));
    const place = base.x[nearest(base.x, x)];
    charts.forEach((chart) => chart.point(place, chart === this));
    const box = this.svg.getBoundingClientRect(), near = event.clientX - box.left;
    const width = this.tip.offsetWidth;
    this.tip.style.left = `${near > box.width / 2 ? Math.max(0, near - width - 10) : near + 32}px`;
    if (this.from !== undefined && event.buttons) this.shade(this.from, x);
  }

  point(x, told) {
    if (!this.found || !this.found.length) return;
    this.cross.replaceChildren();
    this.tip.hidden = !told;
    if (x < this.span.left || x > this.span.right) return;
    const at = this.px(x).toFixed(1);
    add(this.cross, "path", { d: `M${at} ${MARGIN.top}V${this.height - MARGIN.bottom}` });
    if (told) this.tip.replaceChildren();
    if (told) add(this.tip, "b", {}, this.heading(x));
    for (const line of this.found) {
      const i = nearest(line.x, x), apart = Math.abs(this.px(line.x[i]) - this.px(x));
      if (x > line.x[line.x.length - 1] && apart > 12) continue; // the run has ended before
      const colour = this.colour(line.run, line.number);
      add(this.cross, "circle", { class: colour, cx: this.px(line.x[i]).toFixed(1), cy: this.py(line.shown[i]).toFixed(1), r: 4 });
      if (!told) continue;
      const value = this.spec.name === "loss" ? line.y[i].toFixed(4) : short(line.y[i]);
      const beside = apart > 12 ? ` at ${onAxis(line.x[i], state.axis)}` : "";
      const name = several ? `${data.runs[line.run].name} ${line.label}` : line.label;
      const row = add(this.tip, "p", { class: `key ${colour}` }, `${name} `);
      add(row, "strong", {}, value + beside);
    }
  }

  heading(x) {
    const line = this.found.reduce((most, each) => (each.x.length > most.x.length ? each : most));
    const curve = data.runs[line.run].curves[line.key];
    const i = nearest(curve[state.axis], x);
    const told = [`step ${curve.step[i].toLocaleString("en")}`];
    if (curve.tokens) told.push(`${short(curve.tokens[i])} tokens`);
    if (curve.seconds) told.push(duration(curve.seconds[i]));
    return told.join(" · ");
  }

  shade(from, to) {
    const [a, b] = [this.px(from), this.px(to)].sort((p, q) => p - q);
    const height = this.height - MARGIN.top - MARGIN.bottom;
    add(this.cross, "rect", { x: a, y: MARGIN.top, width: b - a, height });
  }

  select(event) {
    if (this.from === undefined) return;
    const [a, b] = [this.from, this.toX(event)].sort((p, q) => p - q);
    this.from = undefined;
    if (b - a > (this.span.right - this.span.left) * 0.02) zoom([a, b]);
  }

  leave() {
    this.from = undefined;
    this.tip.hidden = true;
    if (this.cross) this.cross.replaceChildren();
  }
}

// ---- what stands above the charts ------------------------------------------------------------

const charts = data.charts.map((spec) => new Chart(spec));
const drawAll = () => charts.forEach((chart) => chart.draw());

function zoom(span) {
  state.zoom = span;
  document.getElementById("whole").hidden = !span;
  drawAll();
}

function controls() {
  const bar = document.getElementById("controls");
  if (!bar) return;
  bar.hidden = false;
  const known = Object.keys(AXES).filter((axis) =>
    data.runs.some((run) => Object.values(run.curves).some((curve) => curve[axis])));
  for (const axis of known) {
    const label = add(document.getElementById("axis"), "label");
    const radio = add(label, "input", { type: "radio", name: "axis", value: axis });
    radio.checked = axis === state.axis;
    radio.addEventListener("change", () => { state.axis = axis; zoom(null); });
    add(label, "span", {}, AXES[axis]);
  }
  const smooth = document.querySelector("#smooth input");
  smooth.value = state.smooth;
  smooth.addEventListener("input", () => { state.smooth = Number(smooth.value); drawAll(); });
  document.getElementById("whole").addEventListener("click", () => zoom(null));
  if (several) data.runs.forEach((run, index) => {
    const label = add(document.getElementById("runs"), "label", { class: `key c${index % 8}` });
    const box = add(label, "input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(index); else state.hidden.add(index);
      drawAll();
    });
    add(label, "span", {}, run.name);
  });
}

// ---- samples: those of the step that the slider is at ------------------------------------------

function samples() {
  const slider = document.getElementById("when");
  const steps = [...new Set(data.runs.flatMap((run) => run.samples.map((each) => each.step)))].sort((a, b) => a - b);
  if (!slider || steps.length < 2) return;
  const prompts = [...new Set(data.runs.flatMap((run) => run.samples.map((each) => each.prompt)))];
  const input = slider.querySelector("input");
  const show = () => {
    const step = steps[Number(input.value)];
    slider.querySelector("output").textContent = step.toLocaleString("en");
    for (const card of document.querySelectorAll(".sample")) {
      const prompt = prompts[Number(card.getAttribute("data-prompt"))];
      const own = data.runs[Number(card.getAttribute("data-run"))].samples
        .filter((each) => each.prompt === prompt && each.step <= step);
      const last = own[own.length - 1]; // of the run's newest by then
      card.querySelector(".step").textContent = last ? `step ${last.step.toLocaleString("en")}` : "";
      card.querySelector(".text").textContent = last ? last.text : "";
    }
  };
  slider.hidden = false;
  input.max = steps.length - 1;
  input.value = input.max;
  input.addEventListener("input", show);
  show();
}

controls();
samples();
drawAll();
window.addEventListener("resize", drawAll);
window.addEventListener("beforeprint", drawAll);
