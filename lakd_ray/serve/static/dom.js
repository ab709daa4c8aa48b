// Elements and words. Text is only ever set as text, so that file names and answers cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; `false`, `null` and `undefined` are left out of both. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function makeSvg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== false && child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Have a screen reader say something, also if it says the same as before. */
export function announce(words) {
  const liveRegion = byId("announce");
  liveRegion.textContent = liveRegion.textContent === words ? `${words}\u00a0` : words;
}

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

/** "fi" -> "Finnish". */
export function languageName(code) {
  try {
    return names.of(code);
  } catch {
    return code; // what is no code of a language has no other name
  }
}

/** Seconds as a clock shows them, with a decimal where that tells more. */
export function formatDuration(seconds, decimals = 0) {
  const unit = 10 ** decimals;
  const rounded = Math.round(seconds * unit);
  const minutes = Math.floor(rounded / (60 * unit));
  const rest = (rounded / unit - 60 * minutes).toFixed(decimals);
  return `${minutes}:${rest.padStart(decimals ? 3 + decimals : 2, "0")}`;
}

export const percent = (share) => `${Math.round(100 * share)} %`;
