// The microphone: samples while it is open, and a WAV file of the complete recording.

import { ApiError } from "./api.js";

const SAMPLE_RATE = 16000; // the sample rate of the model, lower than that of most sound cards

/** Return why the page cannot record in this browser, or null if it can. */
export function unsupportedReason() {
  if (!window.isSecureContext) return "To record here, open the page over HTTPS, or as localhost.";
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "This browser cannot record here.";
  return null;
}

/** An open microphone, created by `Microphone.open`. */
export class Microphone {
  #media;
  #context;
  #node;
  #chunks = [];
  #drained;

  /**
   * Open the microphone.
   *
   * `onSamples` is called every tenth of a second with a buffer of 16-bit samples and their peak, 0 to 1; `onLost` if
   * the microphone is disconnected.
   */
  static async open({ onSamples, onLost }) {
    const microphone = new Microphone();
    try {
      await microphone.#open(onSamples, onLost);
    } catch (error) {
      await microphone.close();
      throw microphoneError(error);
    }
    return microphone;
  }

  async #open(onSamples, onLost) {
    // loudness and noise carry emotion, so the browser must not normalize them
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.#media = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    const source = this.#connect();
    await this.#context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    this.#node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0 });
    this.#drained = new Promise((resolve) => {
      this.#node.port.onmessage = ({ data }) => {
        if (data.last) return resolve();
        this.#chunks.push(data.samples);
        return onSamples(data.samples, data.peak);
      };
    });
    for (const track of this.#media.getTracks()) track.onended = onLost;
    source.connect(this.#node);
    await this.#context.resume();
  }

  #connect() {
    this.#context = new AudioContext({ sampleRate: SAMPLE_RATE });
    try {
      return this.#context.createMediaStreamSource(this.#media);
    } catch {
      // Firefox cannot connect nodes of different sample rates
      this.#context.close();
      this.#context = new AudioContext();
      return this.#context.createMediaStreamSource(this.#media);
    }
  }

  /** Sample rate in Hz. */
  get rate() {
    return this.#context.sampleRate;
  }

  /** Length of the recording so far, in seconds. */
  get seconds() {
    return this.#chunks.reduce((sum, part) => sum + part.byteLength, 0) / 2 / this.rate;
  }

  /** Close the microphone; the last samples arrive before this resolves. */
  async close() {
    for (const track of this.#media?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    if (this.#node && this.#context.state === "running") {
      this.#node.port.postMessage("end");
      await this.#drained;
    }
    if (this.#context && this.#context.state !== "closed") await this.#context.close();
  }

  /** Return the complete recording as a WAV file. */
  wav() {
    const bytes = this.#chunks.reduce((sum, part) => sum + part.byteLength, 0);
    const header = new DataView(new ArrayBuffer(44));
    const writeText = (offset, text) =>
      [...text].forEach((letter, index) => header.setUint8(offset + index, letter.charCodeAt(0)));
    writeText(0, "RIFF");
    header.setUint32(4, 36 + bytes, true);
    writeText(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true); // PCM
    header.setUint16(22, 1, true); // channels
    header.setUint32(24, this.rate, true);
    header.setUint32(28, 2 * this.rate, true);
    header.setUint16(32, 2, true); // bytes per frame
    header.setUint16(34, 16, true); // bits per sample
    writeText(36, "data");
    header.setUint32(40, bytes, true);
    return new Blob([header, ...this.#chunks], { type: "audio/wav" });
  }
}

function microphoneError(error) {
  if (error.name === "NotAllowedError") {
    return new ApiError(
      "The browser blocks the microphone for this page.",
      "Allow it in the page's settings (beside its address), then record again.",
    );
  }
  if (error.name === "NotFoundError") {
    return new ApiError("There is no microphone.", "Connect one, or choose a file.");
  }
  if (error.name === "NotReadableError") {
    return new ApiError(
      "The microphone is in use by a different application.",
      "Close that application, then record again.",
    );
  }
  return new ApiError(`The microphone cannot be used (${error.name}).`, "Choose a file instead.");
}
