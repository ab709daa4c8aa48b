// Emotions on the page: one color each, always next to its name.

import { createElement, formatPercent } from "./dom.js";

const COLORED = new Set(["anger", "happiness", "neutral", "sadness", "disgust", "fear", "surprise", "calm"]);

/** Return the CSS class that sets the color of an emotion. */
export const colorClass = (emotion) => (COLORED.has(emotion) ? `e-${emotion}` : "e-other");

/** Return the emotion and its probability: "sadness 72 %". */
export const formatEmotion = ({ emotion, probabilities }) => `${emotion} ${formatPercent(probabilities[emotion])}`;

/** Format a probability; a small one is not shown as zero. */
const formatProbability = (value) => (value > 0 && value < 0.005 ? "< 1 %" : formatPercent(value));

/** Create a table of probabilities with bars; `update` shows new values. */
export function createProbabilityTable(probabilities, caption) {
  const rows = new Map();
  const body = createElement("tbody");
  const element = createElement(
    "table",
    { class: "bars" },
    createElement("caption", { class: "visually-hidden" }, caption),
    body,
  );
  const update = (values) => {
    const best = Math.max(...Object.values(values));
    for (const [emotion, value] of Object.entries(values)) {
      if (!rows.has(emotion)) rows.set(emotion, addRow(body, emotion));
      const { line, fill, figure } = rows.get(emotion);
      line.classList.toggle("best", value === best);
      fill.style.width = `${100 * value}%`;
      figure.textContent = formatProbability(value);
    }
  };
  update(probabilities);
  return { element, update };
}

function addRow(body, emotion) {
  const fill = createElement("span", { class: `fill ${colorClass(emotion)}` });
  const figure = createElement("td", { class: "figure" });
  const bar = createElement(
    "th",
    { scope: "row" },
    createElement("span", { class: "name" }, emotion),
    createElement("span", { class: "rail" }, fill),
  );
  const line = createElement("tr", {}, bar, figure);
  body.append(line);
  return { line, fill, figure };
}
