// The labelling tray: one image at a time, an answer by a key, by typing or by a button.

import { ask, preload, relative } from "./calls.js";
import { count, counted, el, percent, redraw, since } from "./elements.js";
import { shot } from "./sections.js";

const KEYS = "123456789abcdefghijklmopqrtvwxyz"; // without N, S and U
const MANY = 12; // classes: more are answered by their letters, as nobody knows so many keys
const TOUCHED = matchMedia("(pointer: coarse)"); // where a field with the focus calls up a keyboard
const SHOWN = 200; // classes at once
const BEHIND = 200; // images that one can go back to
const FEW = 5; // images left: ask for more
const ASK = 20;
const MOST = 100;

export class Tray {
  constructor(place, outbox) {
    this.place = place;
    this.outbox = outbox;
    this.open = false;
    this.classes = [];
    this.images = []; // those shown lately and those to come, `at` the one in sight; `given` is its label, "" where it was skipped
    this.at = 0;
    this.gone = { labelled: 0, skipped: 0 }; // of those that were shown before these
    this.known = new Set();
    this.finding = false; // answers are being typed into the field to find a class
    this.other = false;
    this.wanted = "";
    this.said = "";
    place.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("click", (event) => this.click(event));
    place.addEventListener("input", (event) => { if (event.target.id === "label-find") { this.wanted = event.target.value; this.draw(); } });
    place.addEventListener("focusin", (event) => { this.finding = event.target.id === "label-find"; });
    place.addEventListener("submit", (event) => this.submit(event));
    this.draw();
  }

  async start() {
    this.open = true;
    this.said = "Looking for images …";
    this.draw();
    this.focus();
    await this.more();
    this.draw();
    this.finding = this.classes.length > MANY && !TOUCHED.matches;
    this.focus();
  }

  /** Ask for images that were not shown yet. Those that were skipped come again with each answer, so more are asked for. */
  async more() {
    if (this.asking) return;
    this.asking = true;
    try {
      const open = this.gone.skipped + this.images.filter((each) => !each.given).length;
      const found = await ask(`v1/labels/queue?count=${Math.min(MOST, ASK + open + this.outbox.waiting.length)}`);
      this.classes = found.classes;
      this.version = found.version;
      const fresh = found.images.filter((each) => !this.known.has(each.prediction_id));
      for (const each of fresh) this.known.add(each.prediction_id);
      this.images.push(...fresh);
      this.dry = !fresh.length;
      this.said = "";
    } catch (problem) {
      this.said = `The queue cannot be read: ${problem.message}`;
      this.dry = true;
      if (problem.status === 401) this.outbox.needsKey("read", problem);
    } finally {
      this.asking = false;
    }
  }

  /** Look once more, and show again what was skipped. */
  again() {
    const skipped = this.images.filter((each) => each.given === "");
    this.images = this.images.filter((each) => each.given !== "");
    this.at = this.images.length;
    this.gone.skipped = 0;
    this.known = new Set(this.images.map((each) => each.prediction_id));
    this.dry = false;
    if (skipped.length) this.images.push(...skipped.map(({ given, ...each }) => each));
    for (const each of skipped) this.known.add(each.prediction_id);
    return this.start();
  }

  /** There is a key now: read the queue if that was what it lacked. */
  retry() {
    if (this.open && !this.current) this.again();
  }

  get current() {
    return this.images[this.at];
  }

  give(label) {
    if (!this.current) return;
    this.current.given = label;
    this.outbox.add(this.current.prediction_id, label);
    this.next();
  }

  skip() {
    if (!this.current) return;
    this.current.given ??= "";
    this.next();
  }

  /** On to the first one that was neither labelled nor skipped. */
  next() {
    while (this.at > BEHIND && this.images[0].given !== undefined) { // in a tray that is open for days
      const { given, prediction_id } = this.images.shift();
      this.gone[given ? "labelled" : "skipped"] += 1;
      if (given) this.known.delete(prediction_id);
      this.at -= 1;
    }
    const fresh = this.images.findIndex((each) => each.given === undefined);
    this.at = fresh < 0 ? this.images.length : fresh;
    this.other = false;
    this.wanted = "";
    if (this.images.length - this.at < FEW && !this.dry) this.more().then(() => this.draw());
    this.draw();
    this.focus();
  }

  back() {
    if (!this.at) return;
    this.at -= 1;
    this.other = false;
    this.draw();
    this.focus();
  }

  /** Where the next answer comes from: the keys, or the field to find a class, for those who answer by typing. */
  focus() {
    const place = (this.finding && this.place.querySelector("#label-find")) || this.place.querySelector(".tray");
    place?.focus({ preventScroll: true });
  }

  key(event) {
    if (!this.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, textarea, select");
    // A key that is held down is one answer, not one for each image that comes.
    if (event.repeat && (event.key === "Enter" || (event.key.length === 1 && !typing))) {
      event.preventDefault();
      return;
    }
    if (event.key === "Escape" && (this.other || typing)) {
      this.other = this.finding = false;
      this.wanted = "";
      this.draw();
      this.focus();
    } else if (typing && !(event.key.startsWith("Arrow") && event.target.id === "label-find" && !event.target.value)) {
      return;
    } else if (event.key === "Enter") {
      if (event.target.matches("button, summary, a")) return; // it is pressed
      if (this.byEnter() !== undefined) this.give(this.byEnter());
    } else if (event.key === "ArrowRight" || event.key === "s" || event.key === "S") {
      this.skip();
    } else if (event.key === "ArrowLeft" || event.key === "u" || event.key === "U") {
      this.back();
    } else if (event.key === "n" || event.key === "N") {
      this.name();
    } else if (event.key === "/" && this.classes.length > MANY) {
      this.place.querySelector("#label-find")?.focus();
    } else {
      const label = event.key.length === 1 ? this.classes[KEYS.indexOf(event.key.toLowerCase())] : undefined;
      if (label === undefined || !this.current) return;
      this.give(label);
    }
    event.preventDefault();
  }

  name() {
    if (!this.current) return;
    this.other = true;
    this.draw();
    document.getElementById("label-other").focus();
  }

  click(event) {
    const button = event.target.closest("button");
    if (!button) return;
    const { label, act } = button.dataset;
    if (label !== undefined) this.give(label);
    else if (act === "start") this.start();
    else if (act === "skip") this.skip();
    else if (act === "back") this.back();
    else if (act === "other") this.name();
    else if (act === "again") this.again();
    else if (act === "stop") { this.open = false; this.draw(); this.place.querySelector("button").focus(); }
  }

  submit(event) {
    event.preventDefault();
    if (event.target.id === "label-other-form") {
      const label = document.getElementById("label-other").value.trim();
      if (label) this.give(label);
    } else {
      if (this.byEnter() !== undefined) this.give(this.byEnter());
    }
  }

  /** The classes that have what is typed: that one itself, then those that begin so, then the others. */
  chosen() {
    const wanted = this.wanted.trim().toLowerCase();
    if (!wanted) return this.classes;
    const found = { 0: [], 1: [], 2: [] };
    for (const each of this.classes) {
      const name = each.toLowerCase();
      if (name.includes(wanted)) found[name === wanted ? 0 : name.startsWith(wanted) ? 1 : 2].push(each);
    }
    return Object.values(found).flat();
  }

  /** What Enter answers: the first class that was found, or that the model is right. */
  byEnter() {
    return this.wanted.trim() ? this.chosen()[0] : this.current?.predicted;
  }

  draw() {
    const held = this.place.contains(document.activeElement);
    redraw(this.place, this.status(), this.open ? this.tray() : this.closed());
    const find = this.place.querySelector("#label-find");
    if (find && find.value !== this.wanted) find.value = this.wanted;
    // What had the focus may be gone, an empty tray for one; without it the keys would reach nobody.
    if (this.open && held && !this.place.contains(document.activeElement)) this.focus();
    if (this.images[this.at + 1]) preload(this.images[this.at + 1].image);
  }

  closed() {
    return el("div", { "data-key": "closed" },
      el("p.quiet", {}, "Labels tell how accurate the model really is, and are what it learns from. Half of the images are drawn at random, half are those it was least sure of."),
      el("p", {}, el("button.primary", { type: "button", "data-act": "start" }, "Start labelling")));
  }

  hint(found, byEnter) {
    if (byEnter === undefined) return "No class has these letters. Esc, then N, names a new one.";
    const said = counted(found.length, "class", "classes") + (this.wanted.trim() ? " found." : ". Type some letters of one.");
    return `${said} Enter answers ${byEnter}.`;
  }

  status() {
    const { waiting, trouble, arrived } = this.outbox;
    const given = this.gone.labelled + this.images.filter((each) => each.given).length;
    const skipped = this.gone.skipped + this.images.filter((each) => each.given === "").length;
    const parts = [`${count(given)} labelled`, skipped ? `${count(skipped)} skipped` : null, `${counted(Math.max(0, this.images.length - this.at), "image")} to go`].filter(Boolean);
    return [
      el("p.small.quiet", { role: "status", "data-key": "progress" }, this.open && this.images.length ? `${parts.join(", ")}.` : "", arrived && !waiting.length ? " All sent." : ""),
      waiting.length && trouble ? el("div.unsent", { "data-key": "unsent" }, el("p", { role: "alert" },
        `${counted(waiting.length, "label")} not sent yet: ${trouble.message}. ${trouble.aboutKey ? "They go out once there is a key." : "They are kept, and tried again."}`)) : null,
    ];
  }

  tray() {
    const image = this.current;
    if (!image) {
      const said = this.said || (this.asking ? "Looking for more …" : "Nothing is left to label: every captured image of the latest window has a label or was skipped.");
      return el("div", { "data-key": "empty" }, el("div.tray", { tabindex: -1, role: "group", "aria-label": "Labelling" },
        el("div", {}, el("p", {}, said), el("div.row", {},
          el("button", { type: "button", "data-act": "again" }, "Look again"),
          this.at ? el("button", { type: "button", "data-act": "back" }, "Back to the last one") : null,
          el("button", { type: "button", "data-act": "stop" }, "Close")))));
    }
    const given = image.given || null;
    const [found, byEnter, many] = [this.chosen(), this.byEnter(), this.classes.length > MANY];
    return el("div.tray", { tabindex: -1, role: "group", "data-key": "tray", "aria-label": `Labelling: the model says ${image.predicted}, ${percent(image.confidence, 0)} sure` },
      shot(relative(image.image), "The image to label", "this picture cannot be shown"),
      el("div", { "data-key": "answers" },
        el("p", {}, "The model says ", el("b", {}, image.predicted), `, ${percent(image.confidence, 0)} sure.`, given ? [" You said ", el("b", {}, given), "."] : null),
        el("p.small.quiet", {}, image.chosen === "random" ? "Drawn at random; came in " : "One of those it was least sure of; came in ", since(image.at), "."),
        many ? el("form", { id: "label-find-form", "data-key": "find" },
          el("label", { for: "label-find" }, "Find a class ", el("kbd", { "aria-hidden": "true" }, "/")),
          el("input", { id: "label-find", type: "search", autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/", "aria-describedby": "label-found" }),
          el("p.small.quiet", { id: "label-found", role: "status" }, this.hint(found, byEnter))) : null,
        el("div.classes", { "data-key": "classes", role: "group", "aria-label": "Classes" }, found.slice(0, SHOWN).map((label) => {
          const key = KEYS[this.classes.indexOf(label)];
          return el(label === image.predicted ? "button.answer" : "button", { type: "button", "data-label": label, "data-key": `class ${label}`, "aria-pressed": given === label ? "true" : null, "aria-keyshortcuts": key },
            key ? el("kbd", { "aria-hidden": "true" }, key.toUpperCase()) : null, el("span", {}, label), label === byEnter ? el("kbd", { "aria-hidden": "true" }, "↵") : null);
        })),
        found.length > SHOWN ? el("p.small.quiet", { "data-key": "more" }, `and ${counted(found.length - SHOWN, "class", "classes")} more: type to find them`) : null,
        this.other ? el("form", { id: "label-other-form", "data-key": "other" }, el("label", { for: "label-other" }, "A label that is no class"), el("div.row", {}, el("input", { id: "label-other", maxlength: 200, required: true, autocomplete: "off" }), el("button", {}, "Save"))) : null,
        el("div.row", { "data-key": "acts" },
          act("skip", "Skip", many ? "→" : "S"), act("back", "Back", many ? "←" : "U", !this.at), act("other", "No class …", "N"), el("button", { type: "button", "data-act": "stop" }, "Close"))));
  }
}

function act(name, text, key, disabled = false) {
  const named = { "→": "ArrowRight", "←": "ArrowLeft" }[key] ?? key;
  return el("button", { type: "button", "data-act": name, "aria-keyshortcuts": named, disabled }, text, " ", el("kbd", { "aria-hidden": "true" }, key));
}
