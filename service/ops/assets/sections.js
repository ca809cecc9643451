// What is shown of an overview, but for the charts: each section is made of it anew, and redrawn where it differs.

import { familyTitle } from "./charts.js";
import { load } from "./calls.js";
import { capital, count, counted, el, interval, moment, percent, pill, plain, redraw, since, track, words } from "./elements.js";

const VERDICTS = {
  ok: ["good", "Nothing has changed that matters"],
  insufficient_data: ["caution", "Too few images yet to say"],
  collection_fault: ["bad", "Images do not come in as they should"],
  sensor_shift: ["bad", "The camera, or what prepares the images, has changed"],
  prior_shift: ["bad", "Some classes come more often than they did"],
  data_drift: ["bad", "The images are not like those the model knows"],
  concept_drift: ["bad", "What the labels mean has changed: the model errs on images that look the same"],
};
const STATES = { healthy: "Healthy", suspected: "Drift suspected", drifting: "Drifting", retraining: "Retraining", unchecked: "Serving, not checked yet", none: "No model yet" };
const STATUS_TONES = { live: "good", refused: "bad", "rolled back": "bad", stopped: "bad", waiting: "caution", "rolling out": "caution" };
const EVENT_TONES = {
  drift_opened: "bad", retrain_failed: "bad", gate_refused: "bad", rolled_back: "bad", swap_failed: "bad", rollout_stopped: "bad",
  retrain_requested: "caution", retrain_started: "caution", rollout_started: "caution", rollout_advanced: "caution",
  drift_closed: "good", gate_passed: "good", deployed: "good", watch_passed: "good",
};
const $ = (id) => document.getElementById(id);

const drawn = new Map();
/** Redraw a section if what it is made of differs from the last time. */
function once(name, of, make) {
  const text = JSON.stringify(of);
  if (drawn.get(name) === text) return;
  make();
  drawn.set(name, text);
}

export function show(overview, filter) {
  const { state, live, check } = overview;
  const { watch, rollout } = overview;
  once("state", [overview.name, state, live, check?.accuracy, check?.at, check?.verdict, watch, rollout], () => hero(overview));
  once("check", check, () => redraw($("check-body"), check ? lastCheck(check) : noCheck(live)));
  once("underway", [watch, rollout, overview.new_labels], () => underway(overview));
  once("models", overview.models, () => redraw($("models-body"), models(overview.models)));
  once("events", overview.events, () => events(overview.events, filter));
}

function hero({ name, state, live, check, watch, rollout }) {
  $("name").textContent = name;
  const tone = state.tone;
  $("state").setAttribute("class", `hero ${tone}`);
  const title = state.stale ? "Nobody is checking" : STATES[state.model_state] ?? words(state.model_state);
  document.title = `${tone === "good" ? "✓" : tone === "bad" ? "✕" : "!"} ${name}: ${title.toLowerCase()}`;
  const accuracy = check?.accuracy?.labels ?? check?.accuracy?.estimated ?? live?.accuracy_held_out;
  const how = check?.accuracy?.labels ? `by ${counted(check.accuracy.labelled, "label")}` : check?.accuracy?.estimated ? "estimated, without labels" : "on held-out images, when it was trained";
  const low = accuracy ? Math.max(0, Math.floor(accuracy.low * 5 - 0.5) / 5) : 0;
  redraw($("state-body"),
    el("div", {}, pill(tone, title), el("p.headline", {}, sentence(state, check)),
      live ? el("p.quiet.small", {}, "Version ", el("code", {}, live.version), `, live since ${moment(live.deployed_at)}: ${live.reason} (${live.actor})`) : null,
      rollout || watch ? el("p.quiet.small", {}, el("a", { href: "#underway" }, "Under way"), `: ${onTheWay(watch, rollout).join("; ")}.`) : null),
    accuracy ? el("div", {}, el("div.big", {}, (100 * accuracy.value).toFixed(1), el("small", {}, " %")),
      el("p.quiet.small", {}, `accuracy ${how}; 95\u00a0% interval ${percent(accuracy.low)} to ${percent(accuracy.high)}`),
      track(accuracy, low), el("div.scale", { "aria-hidden": "true" }, el("span", {}, percent(low, 0)), el("span", {}, "100 %"))) : null);
}

function onTheWay(watch, rollout) {
  const parts = [];
  if (rollout) parts.push(`${rollout.version} goes live in steps, ${rollout.stage}`);
  if (watch) parts.push(`watched beside ${watch.compared_with}, ${count(watch.rows)} of ${count(watch.of)} labelled images compared`);
  return parts;
}

/** The state in one sentence, in the reader's own time; the service's own, in UTC, where this page does not know the state. */
function sentence(state, check) {
  if (!state.since || !(state.model_state in STATES)) return state.sentence;
  const said = STATES[state.model_state] + (state.model_state === "drifting" && check ? ` (${words(check.verdict)})` : "");
  const { labels, labelled, estimated } = check?.accuracy ?? {};
  const accuracy = labels ? `accuracy ${labels.value.toFixed(2)} by ${counted(labelled, "label")}` : estimated ? `accuracy ${estimated.value.toFixed(2)}, estimated` : "accuracy not known";
  return [
    `${said} since ${moment(state.since)}; ${accuracy}`,
    check ? ["; last check ", since(check.at)] : "",
    state.stale ? "; nobody is checking: is `perennial watch` running?" : ".",
  ].flat();
}

function noCheck(live) {
  return el("p.quiet", {}, live ? "The live version has not been checked yet. " : "There is nothing to check yet. ", el("code", {}, "perennial watch"), " checks by itself; one check: ", el("code", {}, "perennial monitor"));
}

function lastCheck(check) {
  const [tone, meaning] = VERDICTS[check.verdict] ?? ["caution", ""];
  const { start, end, rows } = check.window;
  const families = Object.entries(check.families);
  return [
    el("p", {}, pill(tone, check.verdict === "ok" ? "OK" : capital(words(check.verdict))), ` ${meaning}.`),
    check.causes.length ? el("ul.causes", {}, check.causes.map((each) => el("li", {}, el("b", {}, capital(words(each.cause))), `: ${each.why}`))) : null,
    check.retrain ? el("p", {}, el("b", {}, check.retrain.due ? "Retrain: " : "No retrain: "), check.retrain.why, ".") : null,
    el("dl.facts", {},
      fact("Checked", since(check.at)), fact("Images", count(rows)),
      start && end ? fact("From", `${moment(start)} to ${moment(end)}`) : null,
      fact("State", words(check.state ?? "")), fact("Version", el("code", {}, check.version))),
    families.length ? el("div.wide.narrow", { tabindex: 0, role: "region", "aria-label": "Families" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Family"), el("th.n", { scope: "col" }, "Score"), el("th.n", { scope: "col" }, "Counts from"), el("th", { scope: "col" }, "Says"))),
      el("tbody", {}, families.map(([name, family]) => el("tr", {},
        el("th", { scope: "row" }, familyTitle(name)),
        el("td.n", {}, family.skipped || family.score === null ? "–" : plain(family.score)),
        el("td.n", {}, family.floor ? plain(family.floor) : "–"),
        el("td", {}, family.skipped ? el("span.quiet.small", {}, `not tested: ${family.skipped}`) : family.alarm ? pill("bad", "alarm") : el("span.quiet", {}, "calm"))))))) : null,
    check.examples.length ? [
      el("h3", {}, "What it was seen in"),
      el("p.quiet.small", {}, "Large: an image that came in. Small: the images of the training's reference that it is most like."),
      el("ul.gallery", {}, check.examples.map(example)),
    ] : null,
  ];
}

const fact = (name, value) => (value === "" ? null : el("div", {}, el("dt", {}, name), el("dd", {}, value)));

/** A picture that comes when it is looked at, with words in its place where it is gone. */
export function shot(path, alt, gone = "no picture is kept") {
  if (!path) return el("div.shot", {}, el("span.gone", {}, gone));
  const image = el("img", { alt, decoding: "async", "data-picture": path, "data-key": path });
  load(image);
  return el("div.shot", { "data-key": path }, el("span.gone", { "aria-hidden": "true" }, gone), image);
}

function example(each) {
  const nearest = each.nearest.slice(0, 3);
  const told = each.label !== null && each.label !== each.predicted;
  const stands = each.stands_out && Math.abs(each.stands_out[1]) >= 2 ? `${words(each.stands_out[0])} ${each.stands_out[1] > 0 ? "higher" : "lower"} by ${Math.abs(each.stands_out[1]).toFixed(1)} standard deviations` : null;
  return el("li", { "data-key": each.prediction_id }, el("figure", {},
    el("div.pair", {},
      shot(each.image, `An image that came in, answered ${each.predicted}`),
      el("div.near", {}, nearest.map((near) => shot(near.image, `A reference image of ${near.label ?? near.predicted}`, "no picture")))),
    el("figcaption", {}, el("b", {}, each.predicted), `, ${percent(each.confidence, 0)} sure`,
      told ? [el("br"), "labelled ", el("b", {}, each.label)] : null,
      stands ? [el("br"), stands] : null,
      nearest.length ? [el("br"), `nearest: ${[...new Set(nearest.map((near) => near.label ?? near.predicted))].join(", ")}`] : null)));
}

function underway({ watch, rollout, new_labels: fresh }) {
  const parts = [];
  if (rollout) {
    const { answered, of, agreed, faults } = rollout;
    const stage = agreed === null ? rollout.stage : "in the shadow, where nobody sees its answers";
    parts.push(el("p", {}, pill("caution", "going live in steps"), " ", el("code", {}, rollout.version), " beside ", el("code", {}, rollout.champion),
      `: ${stage}; stage ${rollout.number} of ${rollout.stages}, since `, since(rollout.since), ". Roll back stops it."));
    parts.push(el("dl.facts", {},
      fact("Images in this stage", answered < of ? `${count(answered)} of the ${count(of)} it needs` : `${count(answered)}, as many as it needs`),
      agreed !== null && answered ? fact("Says the same as the live one", `${percent(agreed / answered)} (${count(agreed)} of ${count(answered)})`) : null,
      faults ? fact("Failed to answer", el("b.wrong", {}, count(faults))) : null));
  }
  if (watch) {
    parts.push(el("p", {}, pill("plain", "watch"), " The live model beside ", el("code", {}, watch.compared_with), `, which it replaced: ${count(watch.rows)} of ${count(watch.of)} labelled images compared.`));
    if (watch.rows) parts.push(el("dl.facts", {}, fact("Live", interval(watch.live)), fact("Before", interval(watch.before)), fact("Only the live one right", count(watch.only_live)), fact("Only the one before right", count(watch.only_before))));
  }
  const images = Object.entries(fresh?.images ?? {});
  if (images.length) {
    parts.push(el("h3", {}, "Labels that are no class yet"));
    parts.push(el("ul.causes", {}, images.slice(0, 20).map(([label, found]) => el("li", {}, el("b", {}, label), fresh.classes.includes(label) ? `: ${counted(found, "image")}; the next retrain learns it` : `: ${count(found)} of ${count(fresh.needed)} images`))));
    if (images.length > 20) parts.push(el("p.quiet", {}, `and ${count(images.length - 20)} more`));
  }
  $("underway").hidden = !parts.length;
  redraw($("underway-body"), parts);
}

function models(found) {
  if (!found.length) return el("p.quiet", {}, "No model yet: ", el("code", {}, "perennial train DATA"));
  const low = Math.max(0, Math.floor(Math.min(1, ...found.map((each) => each.accuracy?.low ?? 1)) * 10 - 0.5) / 10);
  return el("div.wide", { tabindex: 0, role: "region", "aria-label": "Models" }, el("table.stack", {},
    el("thead", {}, el("tr", {}, ["Version", "Status", "Held-out accuracy", "", "Strategy", "Made"].map((each) => el("th", { scope: "col" }, each)), el("th", { scope: "col" }, el("span.hidden", {}, "Actions")))),
    el("tbody", {}, found.map((each) => el("tr", { "data-key": each.version },
      el("th", { scope: "row" }, el("code", {}, each.version), each.parent ? el("div.quiet.small", {}, "from ", el("code", {}, each.parent)) : null),
      el("td", { "data-name": "Status" }, pill(STATUS_TONES[each.status] ?? "plain", each.status)),
      el("td.iv", { "data-name": "Held-out accuracy" }, each.accuracy ? interval(each.accuracy) : ""),
      el("td.plotted", {}, each.accuracy ? track(each.accuracy, low) : ""),
      el("td", { "data-name": "Strategy", title: each.why }, words(each.strategy)),
      el("td", { "data-name": "Made" }, since(each.created_at)),
      el("td.act", {}, each.live
        ? el("button", { type: "button", "data-deploy": "rollback", "data-version": each.version }, "Roll back …")
        : el("button", { type: "button", "data-deploy": "promote", "data-version": each.version, "aria-label": `Promote ${each.version} …` }, "Promote …")))))));
}

/** The events that have the text, newest first. */
export function events(found, filter) {
  const wanted = filter.trim().toLowerCase();
  const chosen = found.filter((each) => !wanted || `${words(each.kind)} ${each.kind} ${each.what} ${each.why}`.toLowerCase().includes(wanted));
  $("events-count").textContent = wanted ? `${chosen.length} of ${counted(found.length, "event")}` : "";
  const rows = chosen.map((each) => el("li", { "data-key": String(each.id) }, since(each.at),
    el("div", {}, el("p", {}, pill(EVENT_TONES[each.kind] ?? "plain", words(each.kind)), " ", each.what), each.why ? el("p.quiet.small", {}, each.why) : null)));
  redraw($("events-body"), rows.length ? el("ol.events", { "data-key": "events" }, rows) : el("p.quiet", { "data-key": "none" }, wanted ? "No event has this text." : "Nothing has happened yet."));
}
