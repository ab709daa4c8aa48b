// Metadata of the served model: fills the list of languages and the section about the model.

import { describeError, fetchModelInfo } from "./api.js";
import { byId, createElement, formatPercent, languageName } from "./dom.js";

let loaded = false;
let pendingLoad = null;

/** Load the metadata once and show it; an error is shown in its section. */
export function showModelInfo() {
  if (!loaded) pendingLoad ??= loadModelInfo().finally(() => (pendingLoad = null));
}

async function loadModelInfo() {
  try {
    const info = await fetchModelInfo();
    loaded = true;
    fillLanguages(info);
    byId("lead").textContent = `Predict the emotion of a recording: ${formatList(info.emotions, "disjunction")}.`;
    byId("model-info-body").replaceChildren(...modelInfoElements(info));
  } catch (error) {
    byId("model-info-body").replaceChildren(createElement("p", { class: "note error" }, describeError(error)));
  }
}

function fillLanguages({ languages: trained, identifiable_languages }) {
  const select = byId("language");
  const unknown = createElement(
    "option",
    { value: "" },
    identifiable_languages.length ? "Identify automatically" : "Not specified",
  );
  select.replaceChildren(
    unknown,
    ...trained.map((code) => createElement("option", { value: code }, languageName(code))),
  );
}

function modelInfoElements(info) {
  const { UR, WR, ece, ...others } = info.dev;
  const lines = [
    ["Model", `${info.model}, version ${info.version}`],
    ["Emotions", formatList(info.emotions)],
    ["Trained on", formatList(info.languages.map(languageName))],
    info.identifiable_languages.length > 0 && ["Identifies", formatList(info.identifiable_languages.map(languageName))],
    info.corpora.length > 0 && ["Corpora", formatList(info.corpora)],
    info.undisclosed_models?.length > 0 && ["Learned from models with unknown data", formatList(info.undisclosed_models)],
    UR !== undefined && ["Recall, mean over emotions (UR)", formatPercent(UR)],
    WR !== undefined && ["Accuracy", formatPercent(WR)],
    ece !== undefined && ["Calibration error", formatPercent(ece)],
    ...Object.entries(others).map(([name, value]) => [metricLabel(name), formatPercent(value)]),
    ["Calibration temperature", info.calibration_temperature.toFixed(2)],
  ].filter(Boolean);
  const hasScores = Object.keys(info.dev).length > 0;
  return [
    createElement(
      "dl",
      {},
      lines.map(([term, text]) =>
        createElement("div", {}, createElement("dt", {}, term), createElement("dd", {}, text)),
      ),
    ),
    hasScores &&
      createElement(
        "p",
        { class: "small" },
        "Measured on the development speakers of the training corpora, which also selected the model; expect lower figures on other data.",
      ),
  ].filter(Boolean);
}

const metricLabel = (name) => (name.startsWith("UR ") ? `Recall, ${languageName(name.slice(3))}` : name);

const formatList = (items, type = "conjunction") => new Intl.ListFormat("en-US", { type }).format(items);
