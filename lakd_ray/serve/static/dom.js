// Helpers for elements and text. Text is never parsed as HTML, so file names and responses cannot inject markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/** Create an element with attributes and children; `false`, `null` and `undefined` are omitted from both. */
export function createElement(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Create an SVG element, as `createElement` does for HTML. */
export function createSvgElement(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG_NAMESPACE, name), attributes, children);
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

/** Announce a message to screen readers, also when it equals the previous one. */
export function announce(message) {
  const liveRegion = byId("announce");
  liveRegion.textContent = liveRegion.textContent === message ? `${message}\u00a0` : message; // only a change is announced
}

const languageNames = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

/** Return the English name of a language code: "fi" -> "Finnish". */
export function languageName(code) {
  try {
    return languageNames.of(code);
  } catch {
    return code; // not a valid language code
  }
}

/** Format seconds as minutes and seconds: 83.25 -> "1:23", with one decimal "1:23.3". */
export function formatDuration(seconds, decimals = 0) {
  const unit = 10 ** decimals;
  const rounded = Math.round(seconds * unit);
  const minutes = Math.floor(rounded / (60 * unit));
  const remainder = (rounded / unit - 60 * minutes).toFixed(decimals);
  return `${minutes}:${remainder.padStart(decimals ? 3 + decimals : 2, "0")}`;
}

/** Format a fraction as a percentage: 0.724 -> "72 %". */
export const formatPercent = (fraction) => `${Math.round(100 * fraction)} %`;
