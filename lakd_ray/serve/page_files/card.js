// What is being served: fills the language list and the model card.

import { card as ask } from "./api.js";
import { byId, languageName, make, percent } from "./dom.js";
import { words } from "./live.js";

let known = false;
let asking = null;

/** Ask for the card and show it; what goes wrong is shown in its place. */
export function showCard() {
  if (!known) asking ??= look().finally(() => (asking = null));
}

async function look() {
  try {
    const card = await ask();
    known = true;
    languages(card);
    byId("lead").textContent = `Which emotion does ${card.model} hear in a recording? It tells apart ${list(card.emotions)}.`;
    byId("card-body").replaceChildren(...body(card));
  } catch (error) {
    byId("card-body").replaceChildren(make("p", { class: "note error" }, words(error)));
  }
}

function languages({ languages: trained, hears }) {
  const select = byId("language");
  const open = make("option", { value: "" }, hears.length ? "Identify by listening" : "Not told");
  select.replaceChildren(open, ...trained.map((code) => make("option", { value: code }, languageName(code))));
}

function body(card) {
  const { UR, WR, ece, ...others } = card.dev;
  const lines = [
    ["Model", `${card.model}, version ${card.version}`],
    ["Emotions", list(card.emotions)],
    ["Trained on", list(card.languages.map(languageName))],
    card.hears.length > 0 && ["Tells apart by itself", list(card.hears.map(languageName))],
    card.corpora.length > 0 && ["Corpora", list(card.corpora)],
    UR !== undefined && ["Recall, mean over emotions", percent(UR)],
    WR !== undefined && ["Recordings that it got right", percent(WR)],
    ece !== undefined && ["Calibration error", percent(ece)],
    ...Object.entries(others).map(([name, value]) => [recallOf(name), percent(value)]),
    ["Calibration temperature", card.calibration_temperature.toFixed(2)],
  ].filter(Boolean);
  const figures = Object.keys(card.dev).length > 0;
  return [
    make("dl", {}, lines.map(([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text)))),
    figures && make("p", { class: "small" }, "Figures are for the speakers it was chosen by, of the same corpora; on others it does worse."),
  ].filter(Boolean);
}

const recallOf = (name) => (name.startsWith("UR ") ? `Recall, ${languageName(name.slice(3))}` : name);

const list = (items) => new Intl.ListFormat("en-GB", { type: "conjunction" }).format(items);
