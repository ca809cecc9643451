// The operations page: reads the overview again and again, shows what changed, and makes a version live.

import { Problem, call, keys, loadMissing, send } from "./calls.js";
import { draw, repaint } from "./charts.js";
import { capital, notice, refreshTimes, timeOfDay } from "./elements.js";
import { Tray } from "./labelling.js";
import { Outbox } from "./outbox.js";
import { events, show } from "./sections.js";
import { TryIt } from "./tryit.js";

const VISIBLE = 5; // seconds between two looks
const HIDDEN = 60;
const LONGEST = 15; // after errors, in sight
const KEPT = 1_100; // milliseconds: an overview that is asked for anew may still be a second old

const $ = (id) => document.getElementById(id);
let hours = 24;
let overview = null;
let etag = null;
let failures = 0;
let timer = 0;
let lastSeen = null;
let looking = null;

let keyFor = null;

function needsKey(scope, problem) {
  keyFor = scope;
  $("key").hidden = false;
  $("key-why").textContent = `${{ read: "Reading", predict: "Classifying an image", feedback: "Labelling" }[scope]} needs a key here: ${problem.message}.`;
}

let tray;
const outbox = new Outbox(() => tray?.draw(), needsKey);
tray = new Tray($("label-body"), outbox);
const tryIt = new TryIt($("try-body"), outbox, needsKey);

/** `anew` asks for what is true now; without it the service may give an answer that is some seconds old. */
async function look({ anew = false } = {}) {
  clearTimeout(timer);
  const turn = (looking = Symbol("a look"));
  try {
    const asking = { ...(etag && { "If-None-Match": etag }), ...(anew && { "Cache-Control": "no-cache" }) };
    const { found, headers } = await call(`v1/overview?hours=${hours}`, { headers: asking });
    if (turn !== looking) return;
    if (found) {
      overview = found;
      render();
      etag = headers.get("ETag"); // only now: what could not be shown is asked for again
    }
    if (failures) loadMissing();
    failures = 0;
    lastSeen = new Date();
    $("away").hidden = true;
    $("main").classList.remove("old");
  } catch (error) {
    if (turn !== looking) return;
    failures += 1;
    away(error);
    if (!(error instanceof Problem)) console.error(error);
  } finally {
    if (turn === looking) {
      updated();
      timer = setTimeout(look, 1000 * pause());
    }
  }
}

function pause() {
  if (document.visibilityState !== "visible") return HIDDEN;
  return failures ? Math.min(LONGEST, 2 ** failures) : VISIBLE;
}

function render() {
  show(overview, $("events-filter").value);
  draw(overview);
  tryIt.classes = overview.live?.classes ?? [];
  if (keyFor === "read") $("key").hidden = true; // it was read
}

/** The last picture stays, greyed, with what is wrong above it. */
function away(problem) {
  $("main").classList.toggle("old", overview !== null);
  $("away").hidden = Boolean(problem.aboutKey);
  if (problem.aboutKey) {
    needsKey("read", problem);
    return;
  }
  const what = !(problem instanceof Problem) ? `This page cannot show what the service answers; if it was updated, load the page again (${problem.message}).`
    : problem.status === 0 ? `${capital(problem.message)}.`
    : problem.status === 503 ? `The service answers, but its ledger does not: ${problem.message}.` : `${problem.title}: ${problem.message}.`;
  const text = `${what} ${lastSeen ? `What you see is of ${timeOfDay(lastSeen)}. ` : ""}Trying again by itself.`;
  if ($("away").textContent !== text) $("away").textContent = text;
}

function updated() {
  const place = $("updated");
  place.classList.toggle("wrong", failures > 0);
  place.textContent = lastSeen ? `${failures ? "Not updated since" : "Updated"} ${lastSeen.toLocaleTimeString("en-GB")}` : failures ? "Not loaded" : "Loading …";
}

function soon() {
  failures = 0;
  etag = null;
  look({ anew: true });
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") {
    refreshTimes();
    look();
  }
});
addEventListener("online", () => look());
setInterval(() => { if (document.visibilityState === "visible") refreshTimes(); }, 15_000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

$("hours").addEventListener("change", (event) => {
  hours = Number(event.target.value);
  etag = null;
  look();
});
$("events-filter").addEventListener("input", () => overview && events(overview.events, $("events-filter").value));

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keys.set("any", $("key-value").value.trim());
  $("key-value").value = "";
  $("key").hidden = true;
  outbox.flush();
  tray.retry();
  loadMissing();
  soon();
});

// Promote and roll back: say what will happen, ask why, and for the key where one is needed.

const dialog = $("deploy");
let asked = null;

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-deploy]");
  if (!button) return;
  const { deploy, version } = button.dataset;
  const back = deploy === "rollback";
  const { rollout, live } = overview;
  asked = { deploy, version };
  $("deploy-title").textContent = back ? "Roll back?" : `Promote ${version}?`;
  $("deploy-what").textContent = back
    ? rollout
      ? `${rollout.version} stops answering, and ${version} answers everything again.`
      : `${version} stops answering, and the version that was live before it answers everything. Workers swap within seconds; no request is lost.`
    : `${version} answers everything from now on${live ? ` in place of ${live.version}` : ""}. The gate is not asked, and it does not go live in steps${rollout ? `; what does so now, ${rollout.version}, ends` : ""}. Workers swap within seconds; no request is lost.`;
  $("deploy-go").textContent = back ? "Roll back" : "Promote";
  $("deploy-problem").textContent = "";
  $("deploy-reason").value = $("deploy-key").value = "";
  askForKey(overview.needs_key.admin && !keys.get("admin"));
  dialog.showModal();
  $("deploy-reason").focus();
});

function askForKey(wanted) {
  $("deploy-key-row").hidden = !wanted;
  $("deploy-key").required = Boolean(wanted);
}

$("deploy-cancel").addEventListener("click", () => dialog.close());
$("deploy-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const typed = $("deploy-key").value.trim();
  if (typed) keys.set("admin", typed);
  $("deploy-key").value = "";
  $("deploy-go").disabled = true;
  $("deploy-problem").textContent = "";
  try {
    const path = asked.deploy === "rollback" ? "v1/rollback" : `v1/models/${encodeURIComponent(asked.version)}/promote`;
    const done = await send(path, { reason: $("deploy-reason").value.trim() }, { scope: "admin" });
    dialog.close();
    notice(`${done.version} is live now.`);
    setTimeout(soon, KEPT); // what the service would say now may be of before
  } catch (problem) {
    if (problem.aboutKey && overview.needs_key.admin) {
      keys.set("admin", null);
      askForKey(true);
    }
    $("deploy-problem").textContent = `${problem.title}: ${problem.message}`;
  } finally {
    $("deploy-go").disabled = false;
  }
});

look();
