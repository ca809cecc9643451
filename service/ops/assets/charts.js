// The timelines: uPlot on one time axis with one cursor, each with a sentence and a table that say the same.

import { count, counted, dayOf, el, moment, percent, plain, redraw, timeOfDay } from "./elements.js";

const HEIGHT = 160;
const LEFT = 52; // of the y axis, the same everywhere so that the charts line up
const FAMILIES = {
  properties: ["image properties", "--c1", []],
  output: ["probabilities", "--c2", [6, 3]],
  class_mix: ["predicted classes", "--c3", [2, 3]],
  embedding: ["embedding", "--c4", [9, 3, 2, 3]],
  novelty: ["images like nothing known", "--c5", [4, 2]],
  labels: ["labels", "--c6", [1, 2]],
};
export const familyTitle = (name) => (name === "embedding_within_classes" ? "embedding, class mix taken out" : FAMILIES[name]?.[0] ?? name);

const charts = new Map();
let deployments = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faint = (name, share) => `color-mix(in srgb, ${colour(name)} ${share}%, transparent)`;
const seconds = (at) => new Date(at).getTime() / 1000;
const tail = (version) => version.slice(version.lastIndexOf("-") + 1);

/** Draw what is not drawn yet, and what changed. */
export function draw(overview) {
  deployments = overview.deployments.map((each) => ({ ...each, x: seconds(each.at) }));
  const from = seconds(overview.traffic.start);
  const span = { from, to: from + overview.traffic.bucket_seconds * overview.traffic.answered.length, marks: deployments };
  for (const [name, of] of [["traffic", traffic], ["accuracy", accuracy], ["drift", drift]]) {
    const found = { ...of(overview), span };
    const text = JSON.stringify([found.data, found.span, found.series.map((each) => each.label), found.said]);
    const known = charts.get(name);
    if (known?.text === text) continue;
    const chart = { ...known, text: null, found };
    charts.set(name, chart);
    show(name);
    chart.text = text;
  }
  redraw(document.getElementById("deployments"), listed(overview.deployments));
}

/** Draw all anew, in other colours. */
export function repaint() {
  for (const [name, chart] of charts) {
    chart.plot?.destroy();
    chart.plot = null;
    show(name);
  }
}

function show(name) {
  const chart = charts.get(name);
  const figure = document.querySelector(`[data-chart="${name}"]`);
  const { found } = chart;
  figure.querySelector("figcaption").textContent = found.said;
  const place = figure.querySelector(".plot");
  const details = figure.querySelector("details");
  details.ontoggle = () => fill(details, chart);
  fill(details, chart);
  const shape = JSON.stringify(found.series.map((each) => each.label));
  if (chart.plot && (chart.shape !== shape || found.empty)) {
    chart.plot.destroy();
    chart.plot = null;
  }
  if (found.empty) {
    place.replaceChildren(el("p.none", {}, found.empty));
    legend(figure, found, null);
    return;
  }
  if (!chart.plot) {
    place.replaceChildren();
    chart.shape = shape;
    chart.plot = new uPlot(options(name, place), found.data, place);
    const canvas = place.querySelector("canvas");
    canvas.setAttribute("role", "img");
    if (!place.dataset.observed) {
      place.dataset.observed = "true";
      new ResizeObserver(() => charts.get(name).plot?.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    }
  } else {
    chart.plot.setData(found.data);
  }
  place.querySelector("canvas").setAttribute("aria-label", found.said);
  legend(figure, found, null);
}

function options(name, place) {
  const { found } = charts.get(name);
  const axis = { stroke: () => colour("--muted"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return {
    width: place.clientWidth || 600,
    height: HEIGHT,
    padding: [18, 24, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "ops" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { range: () => [charts.get(name).found.span.from, charts.get(name).found.span.to] }, y: { range: (_, low, high) => charts.get(name).found.range(low, high) } },
    axes: [
      { ...axis, size: 24, space: 70, values: (_, splits, __, ___, step) => splits.map((each) => label(each, step)) },
      { ...axis, size: LEFT, space: 34, values: (_, splits) => splits.map(found.axis), ...(found.steps ? { incrs: found.steps } : {}) },
    ],
    series: [{}, ...found.series],
    bands: found.bands,
    hooks: {
      drawClear: [(plot) => { if (found.line !== undefined) rule(plot, found.line); }],
      draw: [(plot) => marks(plot)],
      setCursor: [(plot) => legend(document.querySelector(`[data-chart="${name}"]`), charts.get(name).found, plot.cursor.idx ?? null)],
    },
  };
}

function label(at, step) {
  const when = new Date(at * 1000);
  return step >= 86400 || (when.getHours() === 0 && when.getMinutes() === 0) ? dayOf(when) : timeOfDay(when);
}

function rule(plot, value) {
  const { ctx, bbox } = plot;
  const y = Math.round(plot.valToPos(value, "y", true)) + 0.5;
  ctx.save();
  ctx.strokeStyle = colour("--muted");
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/** A line for each deployment, with a flag where there is room; a dashed one for going back. */
function marks(plot) {
  const { ctx, bbox } = plot;
  let free = bbox.left + bbox.width + 4;
  ctx.save();
  ctx.font = `${10.5 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textBaseline = "bottom";
  ctx.textAlign = "left";
  for (const each of [...deployments].reverse()) {
    const x = Math.round(plot.valToPos(each.x, "x", true)) + 0.5;
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = colour(each.rolled_back ? "--bad" : "--muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash(each.rolled_back ? [4 * devicePixelRatio, 3 * devicePixelRatio] : []);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top - 3 * devicePixelRatio);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const flag = `${each.rolled_back ? "↩" : "▸"} ${tail(each.version)}`;
    const width = ctx.measureText(flag).width;
    const left = Math.max(bbox.left, Math.min(x, bbox.left + bbox.width - width));
    if (left + width + 6 < free) {
      ctx.fillText(flag, left, bbox.top - 4 * devicePixelRatio);
      free = left;
    }
  }
  ctx.restore();
}

function legend(figure, found, index) {
  const entries = found.legend.map(({ name, stroke, dash, values, say, alarm }) => {
    const last = values.findLastIndex((each) => each !== null && each !== undefined);
    const value = values[index ?? last];
    const swatch = el("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
      el("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: `var(${stroke})`, "stroke-width": 2.4, "stroke-dasharray": dash?.join(" ") || null }));
    return el("li", {}, swatch, name, el("b", {}, value === null || value === undefined ? "–" : say(value)), index === null && alarm ? el("span.alarm", {}, "alarm") : null);
  });
  const at = index === null ? null : el("li", {}, el("b", {}, moment(found.data[0][index] * 1000)));
  redraw(figure.querySelector(".legend"), entries, at);
}

function fill(details, { found }) {
  if (!details.open) return;
  const rows = found.table.rows.slice(-400).reverse().map((row) => el("tr", {}, row.map((cell, at) => el(at ? "td.n" : "th", at ? {} : { scope: "row" }, cell))));
  redraw(details.querySelector(".wide"), el("table", {},
    el("thead", {}, el("tr", {}, found.table.head.map((cell, at) => el(at ? "th.n" : "th", { scope: "col" }, cell)))), el("tbody", {}, rows)));
  const wide = details.querySelector(".wide");
  wide.tabIndex = 0;
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", details.querySelector("summary").textContent);
}

function listed(entries) {
  if (!entries.length) return [];
  const rows = [...entries].reverse().map((each) => el("tr", {},
    el("th", { scope: "row" }, moment(each.at)), el("td", {}, el("code", {}, each.version)),
    el("td", {}, each.rolled_back ? "↩ rolled back to" : "▸ deployed"), el("td", {}, each.reason), el("td", {}, each.actor)));
  return [el("details.values", { "data-key": "deployments" }, el("summary", {}, `${counted(entries.length, "deployment")} in this time: the vertical lines`),
    el("div.wide", { tabindex: 0, role: "region", "aria-label": "Deployments" }, el("table", {}, el("thead", {}, el("tr", {}, ["When", "Version", "What", "Why", "By"].map((each) => el("th", { scope: "col" }, each)))), el("tbody", {}, rows))))];
}

const total = (numbers) => numbers.reduce((sum, each) => sum + each, 0);

function traffic({ traffic: { start, bucket_seconds: step, answered, rejected } }) {
  const from = seconds(start);
  const x = answered.map((_, at) => from + at * step);
  const minutes = step / 60;
  const per = minutes === 1 ? "minute" : minutes % 60 ? `${minutes} minutes` : minutes === 60 ? "hour" : `${minutes / 60} hours`;
  const [all, bad] = [total(answered), total(rejected)];
  const refused = rejected.map((each) => each || null);
  return {
    said: all + bad ? `${counted(all, "image")} answered, ${count(bad)} rejected as unreadable; drawn per ${per}.` : "Nothing came in in this time.",
    empty: all + bad ? null : "No images in this time",
    data: [x, answered, refused],
    series: [
      { label: "answered", stroke: () => colour("--c1"), width: 1.6, fill: () => faint("--c1", 14), paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } },
      { label: "rejected", stroke: () => colour("--bad"), fill: () => colour("--bad"), paths: uPlot.paths.bars({ size: [0.7, 8], align: 1 }), points: { show: false } },
    ],
    range: (_, high) => [0, Math.max(4, high * 1.08)],
    axis: (each) => (each >= 10000 ? `${plain(each / 1000)} k` : count(each)),
    steps: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7],
    legend: [
      { name: "answered", stroke: "--c1", values: answered, say: count },
      { name: "rejected", stroke: "--bad", values: rejected, say: count },
    ],
    table: { head: ["From", "Answered", "Rejected"], rows: x.map((at, row) => [moment(at * 1000), count(answered[row]), count(rejected[row])]) },
  };
}

/** Values of checks; a gap where another version begins, as its accuracy is another's. */
function stepped(checks, value) {
  return checks.map((check) => (check ? value(check) ?? undefined : null));
}

function withGaps(checks) {
  const found = [];
  for (const check of checks) {
    if (found.length && found.at(-1).version !== check.version) found.push(null);
    found.push(check);
  }
  const x = found.map((check, at) => seconds(check ? check.at : found[at + 1].at) - (check ? 0 : 1e-3));
  return [found, x];
}

const estimated = (found) => (found ? `${percent(found.value)}, ${percent(found.low)} to ${percent(found.high)}` : "–");

function accuracy({ checks, check }) {
  const [found, x] = withGaps(checks);
  const of = (kind, part) => stepped(found, (each) => each[kind]?.[part]);
  const [kinds, latest] = [["accuracy_labels", "accuracy_estimated"], checks.at(-1)];
  const lowest = Math.min(1, ...checks.flatMap((each) => kinds.map((kind) => each[kind]?.low ?? 1)));
  const line = (label, name, dash) => ({ label, stroke: () => colour(name), width: 2, dash, points: { show: () => charts.get("accuracy").found.few, size: 5 } });
  const edge = (label) => ({ label, stroke: "transparent", width: 0, points: { show: false } });
  let said = "No check in this time.";
  if (latest) {
    const parts = [];
    if (latest.accuracy_labels) parts.push(`${estimated(latest.accuracy_labels)} by ${counted(latest.labelled, "label")}`);
    if (latest.accuracy_estimated) parts.push(`${estimated(latest.accuracy_estimated)} estimated without labels`);
    said = parts.length ? `The last check: ${parts.join("; ")} (95 % intervals).` : `The last check knows no accuracy${latest.withheld ? `: ${latest.withheld}` : ""}.`;
  }
  const [labels, guesses] = [of("accuracy_labels", "value"), of("accuracy_estimated", "value")];
  return {
    said,
    few: checks.length < 60,
    empty: [...labels, ...guesses].some((each) => each !== null && each !== undefined) ? null : checks.length ? "No labels and no estimate in this time" : "No checks in this time",
    data: [x, of("accuracy_labels", "high"), of("accuracy_labels", "low"), of("accuracy_estimated", "high"), of("accuracy_estimated", "low"), guesses, labels],
    series: [edge("high"), edge("low"), edge("estimated high"), edge("estimated low"), line("estimated", "--c2", [6, 4]), line("by labels", "--c1")],
    bands: [{ series: [1, 2], fill: () => faint("--c1", 16) }, { series: [3, 4], fill: () => faint("--c2", 13) }],
    range: () => [Math.max(0, Math.floor(lowest * 20 - 0.4) / 20), 1.005],
    axis: (each) => (each > 1.001 ? "" : `${Math.round(100 * each)}\u00a0%`),
    legend: [
      { name: "by labels", stroke: "--c1", values: labels, say: percent },
      { name: "estimated", stroke: "--c2", dash: [6, 4], values: guesses, say: percent },
    ],
    table: { head: ["Check", "By labels", "Labels", "Estimated", "Verdict"], rows: checks.map((each) => [moment(each.at), estimated(each.accuracy_labels), count(each.labelled), estimated(each.accuracy_estimated), each.verdict.replaceAll("_", " ")]) },
  };
}

/** How far a score is on the way to what counts as drift: 1 is its floor. An area under a ROC curve begins at a half. */
function strength(name, score, floor) {
  if (score === null || score === undefined || !floor) return undefined;
  return name === "embedding" ? Math.max(0, score - 0.5) / Math.max(1e-9, floor - 0.5) : Math.max(0, score) / floor;
}

function drift({ checks, check }) {
  const [found, x] = withGaps(checks);
  const floors = Object.fromEntries(Object.entries(check?.families ?? {}).map(([name, family]) => [name, family.floor]));
  const names = Object.keys(FAMILIES).filter((name) => floors[name] && checks.some((each) => name in each.scores));
  const values = names.map((name) => stepped(found, (each) => strength(name, each.scores[name], floors[name])));
  const alarmed = names.filter((name) => check.families[name].alarm).map(familyTitle);
  const every = [...new Set(checks.flatMap((each) => Object.keys(each.scores)))];
  return {
    said: !checks.length ? "No check in this time." : alarmed.length ? `Alarm: ${alarmed.join(", ")}. Scores are drawn in units of what counts as drift, the dashed line.` : "No alarm in the last check. Scores are drawn in units of what counts as drift, the dashed line.",
    empty: names.length ? null : checks.length ? "Too little to test in this time" : "No checks in this time",
    data: [x, ...values],
    series: names.map((name) => ({ label: name, stroke: () => colour(FAMILIES[name][1]), width: 1.8, dash: FAMILIES[name][2], points: { show: () => charts.get("drift").found.few, size: 5 } })),
    few: checks.length < 3,
    line: 1,
    range: (_, high) => [0, Math.max(1.3, (high || 0) * 1.06)],
    axis: (each) => plain(each),
    legend: names.map((name, at) => ({ name: familyTitle(name), stroke: FAMILIES[name][1], dash: FAMILIES[name][2], values: values[at], say: (each) => each.toFixed(2), alarm: check.families[name].alarm })),
    table: { head: ["Check", ...every.map((name) => `${familyTitle(name)} (score)`)], rows: checks.map((each) => [moment(each.at), ...every.map((name) => (each.scores[name] === undefined || each.scores[name] === null ? "–" : plain(each.scores[name])))]) },
  };
}
