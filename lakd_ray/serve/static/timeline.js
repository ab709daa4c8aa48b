// Waveform and emotions over time, with a cursor that pointer and keyboard move together with the player.

import { createElement, createSvgElement, formatDuration, formatPercent } from "./dom.js";
import { colorClass, formatEmotion } from "./emotions.js";
import { drawWaveform } from "./waveform.js";

const WIDTH = 1000; // width of the drawing in SVG units, which is scaled to the available width

/**
 * Split the recording at the midpoints between segments. Segments overlap if the window is longer than the hop; at each
 * time the segment with the nearest center is shown, so that together they cover the recording once.
 */
function splitAtMidpoints(segments, seconds) {
  const centers = segments.map(({ start_s: start, end_s: end }) => (start + end) / 2);
  return segments.map((segment, index) => ({
    ...segment,
    from: index === 0 ? 0 : (centers[index - 1] + centers[index]) / 2,
    to: index === segments.length - 1 ? seconds : (centers[index] + centers[index + 1]) / 2,
  }));
}

/** Create the timeline of a recording. `waveform` may be null and `segments` empty; `player` is an audio element or null. */
export function createTimeline({ name, seconds, segments, emotions, waveform, player }) {
  const parts = splitAtMidpoints(segments, seconds);
  const readout = createElement("p", { class: "readout", "aria-hidden": "true" }); // the cursor has the same text for screen readers
  const plot = createElement("div", { class: "plot" });
  const labels = createElement("div", { class: "labels", "aria-hidden": "true" });
  if (waveform) {
    labels.append(createElement("span", { class: "wave-label" }, "audio"));
    plot.append(createWaveform(name, waveform, seconds));
  }
  if (parts.length) {
    labels.append(...emotions.map((emotion) => createElement("span", { class: "lane-label" }, emotion)));
    plot.append(createLanes(parts, emotions, seconds));
  }
  plot.append(createAxis(seconds), createCursor({ name, seconds, parts, player, readout }));
  return createElement(
    "div",
    { class: "timeline" },
    createElement("div", { class: "track" }, labels, plot),
    readout,
    parts.length > 0 && createTable(parts),
  );
}

function createWaveform(name, waveform, seconds) {
  const { peakSeconds, quiet } = waveform;
  const label = `Waveform of ${name}: ${formatDuration(seconds, 1)}, loudest at ${formatDuration(peakSeconds, 1)}, quiet for ${formatPercent(quiet)} of it`;
  const canvas = createElement("canvas", { class: "wave", role: "img", "aria-label": label });
  const redraw = () => drawWaveform(canvas, waveform, seconds);
  new ResizeObserver(redraw).observe(canvas);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolor = () => (canvas.isConnected ? redraw() : dark.removeEventListener("change", recolor));
  dark.addEventListener("change", recolor);
  return canvas;
}

function createLanes(parts, emotions, seconds) {
  const unit = WIDTH / seconds;
  const lane = (emotion, index) => [
    createSvgElement("rect", { class: "lane", x: 0, y: index + 0.96, width: WIDTH, height: 0.04 }),
    parts.map(({ from, to, emotion: best, probabilities }) => {
      const height = 0.9 * (probabilities[emotion] ?? 0);
      const className = `cell ${colorClass(emotion)} ${emotion === best ? "best" : "other"}`;
      return createSvgElement("rect", {
        class: className,
        x: from * unit,
        y: index + 0.96 - height,
        width: (to - from) * unit,
        height,
      });
    }),
  ];
  const drawing = createSvgElement(
    "svg",
    { class: "lanes", viewBox: `0 0 ${WIDTH} ${emotions.length}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    emotions.flatMap(lane).flat(),
  );
  drawing.style.setProperty("--lanes", emotions.length);
  return drawing;
}

function createAxis(seconds) {
  const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((candidate) => seconds / candidate <= 6) ?? 1800;
  const marks = [];
  for (let position = 0; position <= seconds * 0.86; position += step) {
    const mark = createElement("span", {}, formatDuration(position, step < 1 ? 1 : 0));
    mark.style.left = `${(100 * position) / seconds}%`;
    marks.push(mark);
  }
  return createElement("div", { class: "axis", "aria-hidden": "true" }, marks);
}

function createCursor({ name, seconds, parts, player, readout }) {
  const line = createElement("span", { class: "line" });
  const slider = createElement(
    "div",
    {
      class: "cursor",
      role: "slider",
      tabindex: 0,
      "aria-label": `Position in ${name}`,
      "aria-valuemin": 0,
      "aria-valuemax": seconds.toFixed(1),
    },
    line,
  );
  let current = 0;
  const show = (position) => {
    current = Math.min(Math.max(position, 0), seconds);
    const part = parts.find(({ to }) => current < to) ?? parts.at(-1);
    const text = `${formatDuration(current, 1)} of ${formatDuration(seconds, 1)}${part ? `, ${formatEmotion(part)}` : ""}`;
    line.style.left = `${(100 * current) / seconds}%`;
    slider.setAttribute("aria-valuenow", current.toFixed(1));
    slider.setAttribute("aria-valuetext", text);
    readout.textContent = `At ${text}`;
  };
  const seek = (position) => {
    show(position);
    if (player) player.currentTime = current;
  };
  // keys move from one segment to the next, or by one second without segments
  const stops = parts.length
    ? parts.map(({ from }) => from)
    : Array.from({ length: Math.ceil(seconds) }, (_, second) => second);
  const step = (count) => {
    const target = stops.findLastIndex((stop) => stop <= current + 0.01) + count;
    seek(target >= stops.length ? seconds : stops[Math.max(target, 0)]);
  };
  const togglePlayback = () => (player?.paused ? player.play() : player?.pause());
  const keys = {
    ArrowRight: () => step(1),
    ArrowUp: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowDown: () => step(-1),
    PageUp: () => step(5),
    PageDown: () => step(-5),
    Home: () => seek(0),
    End: () => seek(seconds),
    " ": togglePlayback,
    Enter: togglePlayback,
  };
  slider.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  const seekToPointer = ({ clientX }) => {
    const { left, width } = slider.getBoundingClientRect();
    seek(((clientX - left) / width) * seconds);
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    seekToPointer(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && seekToPointer(event));
  if (player) followPlayer(player, show);
  show(0);
  return slider;
}

/** Move the cursor with the player. */
function followPlayer(player, show) {
  const update = () => {
    show(player.currentTime);
    if (!player.paused && player.isConnected) requestAnimationFrame(update);
  };
  player.addEventListener("play", update);
  player.addEventListener("seeked", update);
  player.addEventListener("ended", update);
}

function createTable(parts) {
  const row = (part) =>
    createElement(
      "tr",
      {},
      createElement("th", { scope: "row" }, `${formatDuration(part.start_s, 1)}\u2013${formatDuration(part.end_s, 1)}`),
      createElement("td", {}, createElement("span", { class: `swatch ${colorClass(part.emotion)}` }), part.emotion),
      createElement("td", { class: "figure" }, formatPercent(part.probabilities[part.emotion])),
    );
  const head = ["Time", "Emotion", "Probability"].map((label) => createElement("th", { scope: "col" }, label));
  return createElement(
    "details",
    {},
    createElement(
      "summary",
      {},
      `Timeline as a table (${parts.length === 1 ? "1 segment" : `${parts.length} segments`})`,
    ),
    createElement(
      "table",
      { class: "parts" },
      createElement("thead", {}, createElement("tr", {}, head)),
      createElement("tbody", {}, parts.map(row)),
    ),
  );
}
