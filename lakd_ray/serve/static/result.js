// One recording on the page: waiting, answered, or refused.

import { ApiError, predict, sentence } from "./api.js";
import { announce, formatDuration, languageName, make, percent } from "./dom.js";
import { bars, colorClass } from "./emotions.js";
import { decodeWaveform } from "./sound.js";
import { timeline } from "./timeline.js";

let count = 0;

/** A recording and what became of it; `element` is its place on the page. */
export class Result {
  #name;
  #blob;
  #shape;
  #language;
  #objectUrl = null;
  #abortController = null;
  #title;
  #body = make("div", { class: "card-body" });

  constructor(name, blob, language) {
    [this.#name, this.#blob, this.#language] = [name, blob, language];
    this.#shape = decodeWaveform(blob);
    const id = `result-${++count}`;
    this.#title = make("h3", { id, tabindex: -1 }, name);
    const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, onclick: () => this.#remove() }, "Remove");
    this.element = make("article", { class: "card", "aria-labelledby": id }, make("div", { class: "card-head" }, this.#title, remove), this.#body);
    this.#showStatus("Waiting for its turn …");
  }

  /** Ask the endpoint, and show what it says; whether that is an answer. */
  async submit() {
    this.#showStatus("Listening …");
    this.#abortController = new AbortController();
    try {
      const shape = await this.#shape;
      const onWait = (seconds) => this.#showStatus(`The endpoint is busy: trying again in ${Math.ceil(seconds)} s …`);
      const { signal } = this.#abortController;
      const options = { language: this.#language, seconds: shape?.seconds, onWait, signal };
      await this.show(await predict(this.#blob, options));
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.#showError(error);
      return false;
    } finally {
      this.#abortController = null;
    }
  }

  /** Show an answer; `notes` are warnings of the page's own. */
  async show(answer, notes = []) {
    const shape = await this.#shape;
    const seconds = answer.duration_s;
    const player = shape && this.#player();
    const emotions = Object.keys(answer.probabilities);
    const warnings = [...notes, ...answer.warnings.map(({ message }) => sentence(message))];
    this.#fill(
      make("div", { class: "answer" }, this.#headline(answer), bars(answer.probabilities, `Probabilities for ${this.#name}`).element),
      warnings.length > 0 && make("ul", { class: "warnings", "aria-label": "Take note" }, warnings.map((warning) => make("li", {}, warning))),
      timeline({ name: this.#name, seconds, segments: answer.segments ?? [], emotions, shape, player }),
      player || make("p", { class: "small" }, "This browser cannot play or draw this format; the endpoint could hear it."),
      make("p", { class: "small" }, `Answered by ${answer.model}, version ${answer.version}.`),
    );
    announce(`${this.#name}: ${formatEmotionText(answer)}. ${formatLanguage(answer, this.#language)}. ${warnings.join(" ")}`.trim());
  }

  #headline(answer) {
    const share = answer.probabilities[answer.emotion];
    return make(
      "div",
      { class: "headline" },
      make("p", { class: "emotion" }, make("span", { class: `swatch ${colorClass(answer.emotion)}` }), answer.emotion, " ", make("span", { class: "confidence" }, percent(share))),
      make("p", {}, formatLanguage(answer, this.#language)),
      make("p", {}, `Length: ${formatDuration(answer.duration_s, 1)}`),
    );
  }

  #player() {
    this.#objectUrl ??= URL.createObjectURL(this.#blob);
    return make("audio", { controls: true, preload: "metadata", src: this.#objectUrl, "aria-label": `Play ${this.#name}` });
  }

  #showStatus(words) {
    this.element.setAttribute("aria-busy", "true");
    this.#body.replaceChildren(make("p", { class: "waiting" }, make("span", { class: "pulse", "aria-hidden": "true" }), words));
  }

  #showError(error) {
    const [why, advice] = error instanceof ApiError ? [error.message, error.advice] : [`The page failed (${error.message}).`, "Load it again."];
    const again = make("button", { type: "button", class: "button small-button", onclick: () => this.#again() }, "Try again");
    this.#fill(
      make("div", { class: "note error" }, make("p", {}, make("strong", {}, why)), make("p", {}, advice)),
      make("div", { class: "actions" }, again),
    );
    announce(`${this.#name}: no answer. ${why} ${advice}`);
  }

  #again() {
    this.#title.focus(); // the button goes
    this.submit();
  }

  #fill(...children) {
    this.element.removeAttribute("aria-busy");
    this.#body.replaceChildren(...children.filter(Boolean));
  }

  #remove() {
    this.#abortController?.abort();
    this.#body.querySelector("audio")?.pause();
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    this.element.remove();
    if (this.#objectUrl) URL.revokeObjectURL(this.#objectUrl);
    (next?.querySelector("h3") ?? document.getElementById("choose")).focus();
    announce(`${this.#name} removed.`);
  }
}

/** "sadness, 72 %". */
export const formatEmotionText = ({ emotion, probabilities }) => `${emotion}, ${percent(probabilities[emotion])}`;

function formatLanguage({ language, language_probability: confidence }, told) {
  if (!language) return "Language: not told";
  if (told) return `Language: ${languageName(language)}, as told`;
  return `Language: ${languageName(language)}, heard${confidence === null || confidence === undefined ? "" : ` with ${percent(confidence)}`}`;
}
