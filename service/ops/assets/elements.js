// Elements, and what people read in them. All that comes from data becomes text here, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `el("p.quiet", {id: "x"}, "text", child, [more])`. Null and false are left out. */
export function el(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = tag === "svg" || tag === "line" || tag === "circle" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Make the children of `place` those of `wanted`, changing only what differs: focus, open details and loaded pictures stay. */
export function redraw(place, ...wanted) {
  const fresh = document.createElement("div");
  fresh.append(...wanted.flat(3).filter(Boolean));
  match(place, fresh);
  return place;
}

function match(place, fresh) {
  const keyed = new Map();
  for (const child of place.children) if (child.dataset?.key) keyed.set(child.dataset.key, child);
  let at = place.firstChild;
  for (const next of [...fresh.childNodes]) {
    const known = next.dataset?.key ? keyed.get(next.dataset.key) : at && !at.dataset?.key ? at : null;
    if (known && known.nodeName === next.nodeName && known.nodeType === next.nodeType) {
      if (known !== at) place.insertBefore(known, at);
      else at = at.nextSibling;
      update(known, next);
    } else {
      place.insertBefore(next, at);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function update(known, next) {
  if (known.nodeType !== Node.ELEMENT_NODE) {
    if (known.data !== next.data) known.data = next.data;
    return;
  }
  if (known.dataset?.picture && known.dataset.picture === next.dataset.picture) return; // it is loaded, or known to be gone
  for (const { name } of [...known.attributes]) {
    const own = known.nodeName === "DETAILS" && name === "open"; // people open them, not data
    if (!own && !next.hasAttribute(name)) known.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) if (known.getAttribute(name) !== value) known.setAttribute(name, value);
  match(known, next);
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });

/** `20 Nov, 14:02`, local time; with the day, as what is shown may stand there until tomorrow. */
export function moment(at) {
  const when = new Date(at);
  return `${day.format(when)}, ${clock.format(when)}`;
}
export const timeOfDay = (when) => clock.format(when);
export const dayOf = (when) => day.format(when);

/** `just now`, `3 min ago`, `5 h ago`, `12 days ago`: as `perennial status` says it. */
function ago(at) {
  const minutes = Math.round((Date.now() - new Date(at)) / 60000);
  if (minutes < 1) return "just now";
  if (minutes < 90) return `${minutes} min ago`;
  const hours = Math.round(minutes / 60);
  return hours < 48 ? `${hours} h ago` : `${Math.round(hours / 24)} days ago`;
}

/** A moment as so long ago, which `refreshTimes` keeps right; all of it in the title. */
export function since(at) {
  return el("time", { datetime: at, title: full.format(new Date(at)), "data-ago": true }, ago(at));
}
export function refreshTimes() {
  for (const each of document.querySelectorAll("time[data-ago]")) {
    const text = ago(each.dateTime);
    if (each.textContent !== text) each.textContent = text;
  }
}

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);
export const counted = (number, one, many = `${one}s`) => `${whole.format(number)} ${number === 1 ? one : many}`;
/** A share in 0..1 as `97.1 %` on one line; a sure thing has no digits. */
export const percent = (share, digits = 1) => `${(100 * share).toFixed(share === 1 || share === 0 ? 0 : digits)}\u00a0%`;
/** A score: three digits that matter. */
export const plain = (number) => (Math.abs(number) >= 100 ? number.toFixed(0) : Number(number.toPrecision(3)).toString());
/** `collection_fault` as people write it. */
export const words = (name) => String(name).replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** An estimate in words: `97.1 % (95.0 to 98.4)`. */
export const interval = (found) => `${percent(found.value)} (${(100 * found.low).toFixed(1)} to ${(100 * found.high).toFixed(1)})`;

/** An estimate as a dot on its interval, between `low` and 1. */
export function track(found, low = 0) {
  const place = (value) => `${Math.min(100, Math.max(0, (100 * (value - low)) / (1 - low || 1))).toFixed(1)}%`;
  return el("svg.track", { width: "100%", height: 16, "aria-hidden": "true" },
    el("line.axis", { x1: 0, x2: "100%", y1: 8, y2: 8 }),
    el("line.range", { x1: place(found.low), x2: place(found.high), y1: 8, y2: 8 }),
    el("circle.dot", { cx: place(found.value), cy: 8, r: 4 }));
}

const SYMBOLS = { good: "✓", caution: "!", bad: "✕", plain: "·" };
/** A state as colour, sign and word. */
export function pill(tone, text) {
  return el(`span.pill.${tone}`, {}, el("span", { "aria-hidden": "true" }, `${SYMBOLS[tone] ?? "·"} `), text);
}

/** Say something to whoever looks or listens. Good news goes by itself, the rest stays until it is closed. */
export function notice(text, tone = "good") {
  const close = el("button.close", { type: "button", "aria-label": "Close" }, "×");
  const made = el(`div.notice.${tone}`, {}, el("p", {}, text), close);
  close.addEventListener("click", () => made.remove());
  const place = document.getElementById("notices");
  place.append(made);
  while (place.children.length > 4) place.firstElementChild.remove();
  if (tone === "good") setTimeout(() => made.remove(), 8000);
}
