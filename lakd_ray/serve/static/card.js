// What is being served: fills the language list and the model card.

import { fetchModelInfo } from "./api.js";
import { byId, languageName, make, percent } from "./dom.js";
import { describeError } from "./live.js";

let loaded = false;
let pendingLoad = null;

/** Ask for the card and show it; what goes wrong is shown in its place. */
export function showCard() {
  if (!loaded) pendingLoad ??= loadModelInfo().finally(() => (pendingLoad = null));
}

async function loadModelInfo() {
  try {
    const card = await fetchModelInfo();
    loaded = true;
    fillLanguages(card);
    byId("lead").textContent = `Which emotion does ${card.model} hear in a recording? It tells apart ${formatList(card.emotions)}.`;
    byId("card-body").replaceChildren(...modelInfoElements(card));
  } catch (error) {
    byId("card-body").replaceChildren(make("p", { class: "note error" }, describeError(error)));
  }
}

function fillLanguages({ languages: trained, identifiable_languages }) {
  const select = byId("language");
  const open = make("option", { value: "" }, identifiable_languages.length ? "Identify by listening" : "Not told");
  select.replaceChildren(open, ...trained.map((code) => make("option", { value: code }, languageName(code))));
}

function modelInfoElements(card) {
  const { UR, WR, ece, ...others } = card.dev;
  const lines = [
    ["Model", `${card.model}, version ${card.version}`],
    ["Emotions", formatList(card.emotions)],
    ["Trained on", formatList(card.languages.map(languageName))],
    card.identifiable_languages.length > 0 && ["Tells apart by itself", formatList(card.identifiable_languages.map(languageName))],
    card.corpora.length > 0 && ["Corpora", formatList(card.corpora)],
    UR !== undefined && ["Recall, mean over emotions", percent(UR)],
    WR !== undefined && ["Recordings that it got right", percent(WR)],
    ece !== undefined && ["Calibration error", percent(ece)],
    ...Object.entries(others).map(([name, value]) => [metricLabel(name), percent(value)]),
    ["Calibration temperature", card.calibration_temperature.toFixed(2)],
  ].filter(Boolean);
  const figures = Object.keys(card.dev).length > 0;
  return [
    make("dl", {}, lines.map(([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text)))),
    figures && make("p", { class: "small" }, "Figures are for the speakers it was chosen by, of the same corpora; on others it does worse."),
  ].filter(Boolean);
}

const metricLabel = (name) => (name.startsWith("UR ") ? `Recall, ${languageName(name.slice(3))}` : name);

const formatList = (items) => new Intl.ListFormat("en-GB", { type: "conjunction" }).format(items);
