// The shape of a recording, as far as the browser can decode it.

const MAX_POINTS = 1200; // of a waveform: about as many as a wide screen has columns for it
const QUIET_AMPLITUDE = 0.01;

/** The shape of a recording; null if this browser cannot decode it. */
export async function decodeWaveform(blob) {
  try {
    // unlike an AudioContext it may be made before anything was clicked, and makes no sound
    const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await blob.arrayBuffer());
    return extractEnvelope(decoded);
  } catch {
    return null;
  }
}

function extractEnvelope(decoded) {
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  const points = Math.max(1, Math.min(MAX_POINTS, decoded.length));
  const [lows, highs] = [new Float32Array(points), new Float32Array(points)];
  for (let point = 0; point < points; point++) {
    const end = Math.floor(((point + 1) * decoded.length) / points);
    for (let at = Math.floor((point * decoded.length) / points); at < end; at++) {
      for (const channel of channels) {
        if (channel[at] < lows[point]) lows[point] = channel[at];
        if (channel[at] > highs[point]) highs[point] = channel[at];
      }
    }
  }
  const heights = highs.map((high, point) => Math.max(high, -lows[point]));
  const loudest = heights.indexOf(Math.max(...heights));
  return {
    lows,
    highs,
    seconds: decoded.duration,
    peak: heights[loudest],
    peakSeconds: ((loudest + 0.5) / points) * decoded.duration,
    quiet: heights.filter((height) => height < QUIET_AMPLITUDE).length / points,
  };
}

/** Draw it as large as its canvas is, in the canvas's text color. `seconds` is what the full width stands for. */
export function drawWaveform(canvas, { lows, highs, seconds: own, peak }, seconds) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (!width || !height) return;
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(canvas).color;
  const [middle, scale] = [height / 2, (0.47 * height) / Math.max(peak, 0.05)];
  const shown = Math.min(width, Math.round((width * own) / seconds));
  for (let x = 0; x < shown; x++) {
    const from = Math.floor((x * lows.length) / shown);
    const to = Math.max(from + 1, Math.floor(((x + 1) * lows.length) / shown));
    let [low, high] = [0, 0];
    for (let point = from; point < to; point++) {
      low = Math.min(low, lows[point]);
      high = Math.max(high, highs[point]);
    }
    pen.fillRect(x, middle - high * scale, 1, Math.max((high - low) * scale, ratio));
  }
}
