// Labels on their way to the service.

import { Problem, send } from "./calls.js";
import { notice } from "./elements.js";

const SHELF = "perennial.labels"; // what has not arrived yet, so that reloading the page loses nothing

/** Sends labels in order, again and again until each has arrived or is refused for good. */
export class Outbox {
  constructor(changed, needsKey) {
    this.waiting = JSON.parse(sessionStorage.getItem(SHELF) ?? "[]");
    this.trouble = null;
    this.arrived = 0;
    this.changed = changed;
    this.needsKey = needsKey;
    this.busy = false;
    addEventListener("beforeunload", (event) => { if (this.waiting.length) event.preventDefault(); });
    if (this.waiting.length) this.flush();
  }

  add(prediction_id, label) {
    this.waiting.push({ prediction_id, label, source: "ops" });
    this.keep();
    this.flush();
  }

  keep() {
    sessionStorage.setItem(SHELF, JSON.stringify(this.waiting));
    this.changed();
  }

  async flush() {
    if (this.busy) return;
    this.busy = true;
    try {
      await this.sendAll();
    } finally {
      this.busy = false;
      this.changed();
    }
  }

  async sendAll() {
    let pause = 1;
    while (this.waiting.length) {
      try {
        await send("v1/feedback", this.waiting[0]);
        this.arrived += 1;
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        this.trouble = problem;
        if (problem.aboutKey) {
          this.needsKey("feedback", problem);
          break;
        }
        if (problem.passing) {
          this.keep();
          pause = Math.min(30, Math.max(problem.retryAfter ?? 0, 2 * pause));
          await new Promise((done) => setTimeout(done, 1000 * pause));
          continue;
        }
        notice(`“${this.waiting[0].label}” was not taken: ${problem.message}`, "bad");
      }
      this.trouble = null;
      pause = 1;
      this.waiting.shift();
      this.keep();
    }
  }
}
