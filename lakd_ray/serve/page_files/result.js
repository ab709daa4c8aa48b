// One recording on the page: waiting, answered, or refused.

import { Refusal, emotion as ask, sentence } from "./api.js";
import { announce, clock, languageName, make, percent } from "./dom.js";
import { bars, tint } from "./emotions.js";
import { shape as shapeOf } from "./sound.js";
import { timeline } from "./timeline.js";

let count = 0;

/** A recording and what became of it; `element` is its place on the page. */
export class Result {
  #name;
  #blob;
  #shape;
  #language;
  #address = null;
  #asking = null;
  #title;
  #body = make("div", { class: "card-body" });

  constructor(name, blob, language) {
    [this.#name, this.#blob, this.#language] = [name, blob, language];
    this.#shape = shapeOf(blob);
    const id = `result-${++count}`;
    this.#title = make("h3", { id, tabindex: -1 }, name);
    const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, onclick: () => this.#remove() }, "Remove");
    this.element = make("article", { class: "card", "aria-labelledby": id }, make("div", { class: "card-head" }, this.#title, remove), this.#body);
    this.#wait("Waiting for its turn …");
  }

  /** Ask the endpoint, and show what it says; whether that is an answer. */
  async ask() {
    this.#wait("Listening …");
    this.#asking = new AbortController();
    try {
      const shape = await this.#shape;
      const onWait = (seconds) => this.#wait(`The endpoint is busy: trying again in ${Math.ceil(seconds)} s …`);
      const { signal } = this.#asking;
      const options = { language: this.#language, seconds: shape?.seconds, onWait, signal };
      await this.show(await ask(this.#blob, options));
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.#refuse(error);
      return false;
    } finally {
      this.#asking = null;
    }
  }

  /** Show an answer; `notes` are remarks of the page's own. */
  async show(answer, notes = []) {
    const shape = await this.#shape;
    const seconds = answer.duration_s;
    const player = shape && this.#player();
    const emotions = Object.keys(answer.probabilities);
    const remarks = [...notes, ...answer.warnings.map(({ message }) => sentence(message))];
    this.#fill(
      make("div", { class: "answer" }, this.#headline(answer), bars(answer.probabilities, `Probabilities for ${this.#name}`).element),
      remarks.length > 0 && make("ul", { class: "remarks", "aria-label": "Take note" }, remarks.map((remark) => make("li", {}, remark))),
      timeline({ name: this.#name, seconds, segments: answer.segments ?? [], emotions, shape, player }),
      player || make("p", { class: "small" }, "This browser cannot play or draw this format; the endpoint could hear it."),
      make("p", { class: "small" }, `Answered by ${answer.model}, version ${answer.version}.`),
    );
    announce(`${this.#name}: ${said(answer)}. ${spoken(answer, this.#language)}. ${remarks.join(" ")}`.trim());
  }

  #headline(answer) {
    const share = answer.probabilities[answer.emotion];
    return make(
      "div",
      { class: "headline" },
      make("p", { class: "emotion" }, make("span", { class: `swatch ${tint(answer.emotion)}` }), answer.emotion, " ", make("span", { class: "sure" }, percent(share))),
      make("p", {}, spoken(answer, this.#language)),
      make("p", {}, `Length: ${clock(answer.duration_s, 1)}`),
    );
  }

  #player() {
    this.#address ??= URL.createObjectURL(this.#blob);
    return make("audio", { controls: true, preload: "metadata", src: this.#address, "aria-label": `Play ${this.#name}` });
  }

  #wait(words) {
    this.element.setAttribute("aria-busy", "true");
    this.#body.replaceChildren(make("p", { class: "waiting" }, make("span", { class: "pulse", "aria-hidden": "true" }), words));
  }

  #refuse(error) {
    const [why, advice] = error instanceof Refusal ? [error.message, error.advice] : [`The page failed (${error.message}).`, "Load it again."];
    const again = make("button", { type: "button", class: "button small-button", onclick: () => this.#again() }, "Try again");
    this.#fill(
      make("div", { class: "note error" }, make("p", {}, make("strong", {}, why)), make("p", {}, advice)),
      make("div", { class: "actions" }, again),
    );
    announce(`${this.#name}: no answer. ${why} ${advice}`);
  }

  #again() {
    this.#title.focus(); // the button goes
    this.ask();
  }

  #fill(...children) {
    this.element.removeAttribute("aria-busy");
    this.#body.replaceChildren(...children.filter(Boolean));
  }

  #remove() {
    this.#asking?.abort();
    this.#body.querySelector("audio")?.pause();
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    this.element.remove();
    if (this.#address) URL.revokeObjectURL(this.#address);
    (next?.querySelector("h3") ?? document.getElementById("choose")).focus();
    announce(`${this.#name} removed.`);
  }
}

/** "sadness, 72 %". */
export const said = ({ emotion, probabilities }) => `${emotion}, ${percent(probabilities[emotion])}`;

function spoken({ language, language_probability: sure }, told) {
  if (!language) return "Language: not told";
  if (told) return `Language: ${languageName(language)}, as told`;
  return `Language: ${languageName(language)}, heard${sure === null || sure === undefined ? "" : ` with ${percent(sure)}`}`;
}
