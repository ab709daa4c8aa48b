// One recording on the page: waiting, with its result, or with an error.

import { ApiError, predict, toSentence } from "./api.js";
import { announce, createElement, formatDuration, formatPercent, languageName } from "./dom.js";
import { colorClass, createProbabilityTable } from "./emotions.js";
import { createTimeline } from "./timeline.js";
import { decodeWaveform } from "./waveform.js";

let count = 0;

/** A recording and its result; `element` shows both on the page. */
export class Result {
  #name;
  #blob;
  #waveform;
  #language;
  #objectUrl = null;
  #abortController = null;
  #title;
  #body = createElement("div", { class: "card-body" });

  constructor(name, blob, language) {
    [this.#name, this.#blob, this.#language] = [name, blob, language];
    this.#waveform = decodeWaveform(blob);
    const id = `result-${++count}`;
    this.#title = createElement("h3", { id, tabindex: -1 }, name);
    const remove = createElement(
      "button",
      { type: "button", class: "quiet", "aria-label": `Remove ${name}`, onclick: () => this.#remove() },
      "Remove",
    );
    this.element = createElement(
      "article",
      { class: "card", "aria-labelledby": id },
      createElement("div", { class: "card-head" }, this.#title, remove),
      this.#body,
    );
    this.#showStatus("Waiting for other recordings …");
  }

  /** Send the recording and show its result or the error. Return whether it has a result. */
  async submit() {
    this.#showStatus("Analyzing …");
    this.#abortController = new AbortController();
    try {
      const waveform = await this.#waveform;
      const onWait = (seconds) => this.#showStatus(`The endpoint is busy: retrying in ${Math.ceil(seconds)} s …`);
      const { signal } = this.#abortController;
      const options = { language: this.#language, seconds: waveform?.seconds, onWait, signal };
      await this.show(await predict(this.#blob, options));
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.#showError(error);
      return false;
    } finally {
      this.#abortController = null;
    }
  }

  /** Show a prediction; `notes` are additional warnings of the page. */
  async show(prediction, notes = []) {
    const waveform = await this.#waveform;
    const seconds = prediction.duration_s;
    const player = waveform && this.#player();
    const emotions = Object.keys(prediction.probabilities);
    const warnings = [...notes, ...prediction.warnings.map(({ message }) => toSentence(message))];
    this.#fill(
      createElement(
        "div",
        { class: "prediction" },
        this.#headline(prediction),
        createProbabilityTable(prediction.probabilities, `Probabilities for ${this.#name}`).element,
      ),
      warnings.length > 0 &&
        createElement(
          "ul",
          { class: "warnings", "aria-label": "Warnings" },
          warnings.map((warning) => createElement("li", {}, warning)),
        ),
      createTimeline({ name: this.#name, seconds, segments: prediction.segments ?? [], emotions, waveform, player }),
      player ||
        createElement(
          "p",
          { class: "small" },
          "This browser cannot play this format or show its waveform; the endpoint could decode it.",
        ),
      createElement("p", { class: "small" }, `Predicted by ${prediction.model}, version ${prediction.version}.`),
    );
    announce(
      `${this.#name}: ${formatEmotionText(prediction)}. ${formatLanguage(prediction, this.#language)}. ${warnings.join(" ")}`.trim(),
    );
  }

  #headline(prediction) {
    const confidence = prediction.probabilities[prediction.emotion];
    return createElement(
      "div",
      { class: "headline" },
      createElement(
        "p",
        { class: "emotion" },
        createElement("span", { class: `swatch ${colorClass(prediction.emotion)}` }),
        prediction.emotion,
        " ",
        createElement("span", { class: "confidence" }, formatPercent(confidence)),
      ),
      createElement("p", {}, formatLanguage(prediction, this.#language)),
      createElement("p", {}, `Length: ${formatDuration(prediction.duration_s, 1)}`),
    );
  }

  #player() {
    this.#objectUrl ??= URL.createObjectURL(this.#blob);
    return createElement("audio", {
      controls: true,
      preload: "metadata",
      src: this.#objectUrl,
      "aria-label": `Play ${this.#name}`,
    });
  }

  #showStatus(status) {
    this.element.setAttribute("aria-busy", "true");
    this.#body.replaceChildren(
      createElement(
        "p",
        { class: "waiting" },
        createElement("span", { class: "pulse", "aria-hidden": "true" }),
        status,
      ),
    );
  }

  #showError(error) {
    const [message, advice] =
      error instanceof ApiError ? [error.message, error.advice] : [`The page failed (${error.message}).`, "Reload it."];
    const retry = createElement(
      "button",
      { type: "button", class: "button small-button", onclick: () => this.#retry() },
      "Try again",
    );
    this.#fill(
      createElement(
        "div",
        { class: "note error" },
        createElement("p", {}, createElement("strong", {}, message)),
        createElement("p", {}, advice),
      ),
      createElement("div", { class: "actions" }, retry),
    );
    announce(`${this.#name}: no result. ${message} ${advice}`);
  }

  #retry() {
    this.#title.focus(); // the focused button disappears
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

/** Return the emotion and its probability as text for screen readers: "sadness, 72 %". */
const formatEmotionText = ({ emotion, probabilities }) => `${emotion}, ${formatPercent(probabilities[emotion])}`;

function formatLanguage({ language, language_probability: confidence }, specified) {
  if (!language) return "Language: not specified";
  if (specified) return `Language: ${languageName(language)} (specified)`;
  const probability = confidence === null || confidence === undefined ? "" : `, ${formatPercent(confidence)}`;
  return `Language: ${languageName(language)} (identified${probability})`;
}
