// How emotions look: a color each, always beside their names.

import { make, percent } from "./dom.js";

const COLORED = new Set(["anger", "happiness", "neutral", "sadness", "disgust", "fear", "surprise", "calm"]);

/** The class that gives an emotion its color. */
export const colorClass = (emotion) => (COLORED.has(emotion) ? `e-${emotion}` : "e-other");

/** "sadness 72 %". */
export const formatEmotion = ({ emotion, probabilities }) => `${emotion} ${percent(probabilities[emotion])}`;

/** A share in words: a little is not nothing. */
const formatProbability = (value) => (value > 0 && value < 0.005 ? "< 1 %" : percent(value));

/** A table of probabilities with bars; `update` shows others. */
export function bars(probabilities, caption) {
  const rows = new Map();
  const body = make("tbody");
  const element = make("table", { class: "bars" }, make("caption", { class: "visually-hidden" }, caption), body);
  const update = (shares) => {
    const best = Math.max(...Object.values(shares));
    for (const [emotion, value] of Object.entries(shares)) {
      if (!rows.has(emotion)) rows.set(emotion, row(body, emotion));
      const { line, fill, figure } = rows.get(emotion);
      line.classList.toggle("best", value === best);
      fill.style.width = `${100 * value}%`;
      figure.textContent = formatProbability(value);
    }
  };
  update(probabilities);
  return { element, update };
}

function row(body, emotion) {
  const fill = make("span", { class: `fill ${colorClass(emotion)}` });
  const figure = make("td", { class: "figure" });
  const bar = make("th", { scope: "row" }, make("span", { class: "name" }, emotion), make("span", { class: "rail" }, fill));
  const line = make("tr", {}, bar, figure);
  body.append(line);
  return { line, fill, figure };
}
