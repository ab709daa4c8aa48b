// Waveform and emotions over time, with a cursor that listens to pointer and keys and moves the player.

import { formatDuration, makeSvg, make, percent } from "./dom.js";
import { colorClass, formatEmotion } from "./emotions.js";
import { drawWaveform } from "./sound.js";

const WIDTH = 1000; // of the drawing, in its own units; it is stretched to the room that there is

/**
 * Segments overlap where they are heard in longer windows than steps. Each is shown where it is the one whose middle
 * is nearest, so that together they cover the recording once.
 */
export function splitAtMidpoints(segments, seconds) {
  const middles = segments.map(({ start_s: start, end_s: end }) => (start + end) / 2);
  return segments.map((segment, index) => ({
    ...segment,
    from: index === 0 ? 0 : (middles[index - 1] + middles[index]) / 2,
    to: index === segments.length - 1 ? seconds : (middles[index] + middles[index + 1]) / 2,
  }));
}

/** The timeline of a recording. `shape` may be null, and `segments` empty; `player` is its audio element or null. */
export function timeline({ name, seconds, segments, emotions, shape, player }) {
  const parts = splitAtMidpoints(segments, seconds);
  const readout = make("p", { class: "readout", "aria-hidden": "true" }); // the cursor says the same to screen readers
  const plot = make("div", { class: "plot" });
  const labels = make("div", { class: "labels", "aria-hidden": "true" });
  if (shape) {
    labels.append(make("span", { class: "wave-label" }, "sound"));
    plot.append(waveform(name, shape, seconds));
  }
  if (parts.length) {
    labels.append(...emotions.map((emotion) => make("span", { class: "lane-label" }, emotion)));
    plot.append(lanes(parts, emotions, seconds));
  }
  plot.append(axis(seconds), cursor({ name, seconds, parts, player, readout }));
  return make("div", { class: "timeline" }, make("div", { class: "track" }, labels, plot), readout, parts.length > 0 && table(parts));
}

function waveform(name, shape, seconds) {
  const { peakSeconds, quiet } = shape;
  const words = `Waveform of ${name}: ${formatDuration(seconds, 1)}, loudest at ${formatDuration(peakSeconds, 1)}, quiet for ${percent(quiet)} of it`;
  const canvas = make("canvas", { class: "wave", role: "img", "aria-label": words });
  const redraw = () => drawWaveform(canvas, shape, seconds);
  new ResizeObserver(redraw).observe(canvas);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolor = () => (canvas.isConnected ? redraw() : dark.removeEventListener("change", recolor));
  dark.addEventListener("change", recolor);
  return canvas;
}

function lanes(parts, emotions, seconds) {
  const unit = WIDTH / seconds;
  const lane = (emotion, index) => [
    makeSvg("rect", { class: "lane", x: 0, y: index + 0.96, width: WIDTH, height: 0.04 }),
    parts.map(({ from, to, emotion: best, probabilities }) => {
      const height = 0.9 * (probabilities[emotion] ?? 0);
      const look = `cell ${colorClass(emotion)} ${emotion === best ? "best" : "other"}`;
      return makeSvg("rect", { class: look, x: from * unit, y: index + 0.96 - height, width: (to - from) * unit, height });
    }),
  ];
  const picture = makeSvg(
    "svg",
    { class: "lanes", viewBox: `0 0 ${WIDTH} ${emotions.length}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    emotions.flatMap(lane).flat(),
  );
  picture.style.setProperty("--lanes", emotions.length);
  return picture;
}

function axis(seconds) {
  const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((one) => seconds / one <= 6) ?? 1800;
  const marks = [];
  for (let at = 0; at <= seconds * 0.86; at += step) {
    const mark = make("span", {}, formatDuration(at, step < 1 ? 1 : 0));
    mark.style.left = `${(100 * at) / seconds}%`;
    marks.push(mark);
  }
  return make("div", { class: "axis", "aria-hidden": "true" }, marks);
}

function cursor({ name, seconds, parts, player, readout }) {
  const line = make("span", { class: "line" });
  const slider = make(
    "div",
    { class: "cursor", role: "slider", tabindex: 0, "aria-label": `Position in ${name}`, "aria-valuemin": 0, "aria-valuemax": seconds.toFixed(1) },
    line,
  );
  let now = 0;
  const show = (at) => {
    now = Math.min(Math.max(at, 0), seconds);
    const part = parts.find(({ to }) => now < to) ?? parts.at(-1);
    const words = `${formatDuration(now, 1)} of ${formatDuration(seconds, 1)}${part ? `, ${formatEmotion(part)}` : ""}`;
    line.style.left = `${(100 * now) / seconds}%`;
    slider.setAttribute("aria-valuenow", now.toFixed(1));
    slider.setAttribute("aria-valuetext", words);
    readout.textContent = `At ${words}`;
  };
  const seek = (at) => {
    show(at);
    if (player) player.currentTime = now;
  };
  // from one segment to the next; without segments by seconds
  const stops = parts.length ? parts.map(({ from }) => from) : Array.from({ length: Math.ceil(seconds) }, (_, at) => at);
  const step = (by) => {
    const here = stops.findLastIndex((at) => at <= now + 0.01);
    seek(here + by >= stops.length ? seconds : stops[Math.max(here + by, 0)]);
  };
  const play = () => (player?.paused ? player.play() : player?.pause());
  const keys = {
    ArrowRight: () => step(1),
    ArrowUp: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowDown: () => step(-1),
    PageUp: () => step(5),
    PageDown: () => step(-5),
    Home: () => seek(0),
    End: () => seek(seconds),
    " ": play,
    Enter: play,
  };
  slider.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  const point = ({ clientX }) => {
    const { left, width } = slider.getBoundingClientRect();
    seek(((clientX - left) / width) * seconds);
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    point(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && point(event));
  if (player) followPlayer(player, show);
  show(0);
  return slider;
}

/** The cursor goes with the player. */
function followPlayer(player, show) {
  const frame = () => {
    show(player.currentTime);
    if (!player.paused && player.isConnected) requestAnimationFrame(frame);
  };
  player.addEventListener("play", frame);
  player.addEventListener("seeked", frame);
  player.addEventListener("ended", frame);
}

function table(parts) {
  const row = (part) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, `${formatDuration(part.start_s, 1)}\u2013${formatDuration(part.end_s, 1)}`),
      make("td", {}, make("span", { class: `swatch ${colorClass(part.emotion)}` }), part.emotion),
      make("td", { class: "figure" }, percent(part.probabilities[part.emotion])),
    );
  const head = ["From, to", "Emotion", "Probability"].map((words) => make("th", { scope: "col" }, words));
  return make(
    "details",
    {},
    make("summary", {}, `Timeline as a table (${parts.length === 1 ? "1 part" : `${parts.length} parts`})`),
    make("table", { class: "parts" }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, parts.map(row))),
  );
}
