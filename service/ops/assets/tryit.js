// Try it: an image by drag and drop, by paste or from a file, what the model says of it, and what is right.

import { ask } from "./calls.js";
import { el, notice, percent } from "./elements.js";

const TOP = 5;

export class TryIt {
  constructor(place, outbox, needsKey) {
    this.outbox = outbox;
    this.needsKey = needsKey;
    this.classes = [];
    this.tries = 0;
    const input = el("input", { type: "file", accept: "image/*", id: "try-file", "aria-describedby": "try-hint" });
    this.picture = el("div", {});
    this.drop = el("div.drop", {}, this.picture, input);
    this.answer = el("div", { role: "status", id: "try-answer" });
    this.picture.append(hint());
    place.append(el("div.tries", {}, el("div", {}, el("label.hidden", { for: "try-file" }, "An image to classify"), this.drop), this.answer));
    this.say(el("p.quiet", {}, "It is recorded like any other prediction, with the source “ops”."));
    input.addEventListener("change", () => { if (input.files[0]) this.send(input.files[0]); input.value = ""; });
    // A picture that misses the field must not replace the page.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
    for (const name of ["dragenter", "dragover"]) this.drop.addEventListener(name, () => this.drop.classList.add("over"));
    for (const name of ["dragleave", "drop"]) this.drop.addEventListener(name, () => this.drop.classList.remove("over"));
    this.drop.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) this.send(event.dataTransfer.files[0]); });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (!file) return;
      this.drop.scrollIntoView({ block: "nearest" });
      this.send(file);
    });
    this.answer.addEventListener("click", (event) => this.click(event));
  }

  /** All of it anew: what somebody chose for the image before must not stay chosen for this one. */
  say(...what) {
    this.answer.replaceChildren(...what);
  }

  async send(file) {
    const turn = ++this.tries;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    const image = el("img", { alt: `The image ${file.name}`, src: this.url });
    image.addEventListener("error", () => image.replaceWith(el("p.quiet", {}, "This browser cannot show it; the model may still read it.")));
    this.picture.replaceChildren(image, hint());
    this.say(el("p.quiet", {}, "Asking …"));
    const began = performance.now();
    try {
      const top = Math.max(1, Math.min(TOP, this.classes.length || 3));
      const found = await ask(`v1/predict?top=${top}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream", "X-Source": "ops" } });
      if (turn === this.tries) this.show(found, performance.now() - began);
    } catch (problem) {
      if (turn !== this.tries) return;
      this.say(el("p.wrong", {}, el("b", {}, problem.title), `: ${problem.message}`));
      if (problem.aboutKey) this.needsKey("predict", problem);
    }
  }

  show(found, milliseconds) {
    this.found = found;
    const labels = this.classes.length ? this.classes : found.top.map((each) => each.label);
    this.say(
      el("p", {}, el("b", {}, found.label), `, ${percent(found.confidence)} sure.`),
      el("ul.bars", {}, found.top.map((each) => el("li", {}, el("span.bar", { style: `width:${(100 * each.probability).toFixed(1)}%` }), el("span", {}, each.label), el("span", {}, percent(each.probability))))),
      el("p.small.quiet", {}, `Answered in ${milliseconds.toFixed(0)} ms, on the way included, by `, el("code", {}, found.model.version), "."),
      el("div.row", {},
        el("button", { type: "button", "data-try": "right" }, `It is ${found.label}`),
        el("select", { id: "try-label", "aria-label": "What it really is" }, labels.map((each) => el("option", { value: each, selected: each === found.label }, each))),
        el("button", { type: "button", "data-try": "label" }, "Save label")));
  }

  click(event) {
    const how = event.target.closest("button")?.dataset.try;
    if (!how) return;
    const label = how === "right" ? this.found.label : document.getElementById("try-label").value;
    this.outbox.add(this.found.prediction_id, label);
    notice(`Labelled ${label}.`);
  }
}

const hint = () => el("p.quiet", { id: "try-hint" }, "Drop an image here, paste one, or choose a file");
