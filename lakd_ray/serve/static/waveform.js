// The waveform of a recording, if the browser can decode it.

const MAX_POINTS = 1200; // about the width of the waveform on a wide screen, in pixels
const QUIET_AMPLITUDE = 0.01;

/** Return the envelope of a recording, or null if this browser cannot decode it. */
export async function decodeWaveform(blob) {
  try {
    // unlike an AudioContext it can be created before the first click, and plays no sound
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
    for (let index = Math.floor((point * decoded.length) / points); index < end; index++) {
      for (const channel of channels) {
        if (channel[index] < lows[point]) lows[point] = channel[index];
        if (channel[index] > highs[point]) highs[point] = channel[index];
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

/** Draw an envelope over its canvas, in the text color of the canvas. The full width represents `seconds`. */
export function drawWaveform(canvas, { lows, highs, seconds: duration, peak }, seconds) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (!width || !height) return;
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas).color;
  const [middle, scale] = [height / 2, (0.47 * height) / Math.max(peak, 0.05)];
  const columns = Math.min(width, Math.round((width * duration) / seconds));
  for (let x = 0; x < columns; x++) {
    const start = Math.floor((x * lows.length) / columns);
    const end = Math.max(start + 1, Math.floor(((x + 1) * lows.length) / columns));
    let [low, high] = [0, 0];
    for (let point = start; point < end; point++) {
      low = Math.min(low, lows[point]);
      high = Math.max(high, highs[point]);
    }
    context.fillRect(x, middle - high * scale, 1, Math.max((high - low) * scale, ratio));
  }
}
