// The microphone: samples while it is open, a WAV file of all of them at the end.

import { ApiError } from "./api.js";

const SAMPLE_RATE = 16000; // what the model hears; less to send than a sound card's own rate

/** Whether this browser lets this page record, or why not. */
export function unsupportedReason() {
  if (!window.isSecureContext) return "To record here, open the page over HTTPS, or as localhost.";
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "This browser cannot record here.";
  return null;
}

/** An open microphone. */
export class Microphone {
  #media;
  #context;
  #node;
  #chunks = [];
  #drained;

  /**
   * Open it.
   *
   * onSamples is called with each tenth of a second (a buffer of 16-bit samples, the loudest of them); onLost if the
   * microphone goes away.
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
    // loudness and noise are part of how an emotion sounds: the browser is not to even them out
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.#media = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    const source = this.#connect();
    await this.#context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    this.#node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0 });
    this.#drained = new Promise((resolve) => {
      this.#node.port.onmessage = ({ data }) => {
        if (data.last) return resolve();
        this.#chunks.push(data.samples);
        return onSamples(data.samples, data.loudest);
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
      // Firefox joins only what has one rate
      this.#context.close();
      this.#context = new AudioContext();
      return this.#context.createMediaStreamSource(this.#media);
    }
  }

  /** Samples a second. */
  get rate() {
    return this.#context.sampleRate;
  }

  /** How much was heard so far. */
  get seconds() {
    return this.#chunks.reduce((sum, part) => sum + part.byteLength, 0) / 2 / this.rate;
  }

  /** Close it; the last samples come before this is done. */
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

  /** All that was heard, as a WAV file. */
  wav() {
    const bytes = this.#chunks.reduce((sum, part) => sum + part.byteLength, 0);
    const head = new DataView(new ArrayBuffer(44));
    const text = (at, word) => [...word].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
    text(0, "RIFF");
    head.setUint32(4, 36 + bytes, true);
    text(8, "WAVEfmt ");
    head.setUint32(16, 16, true);
    head.setUint16(20, 1, true); // PCM
    head.setUint16(22, 1, true); // channels
    head.setUint32(24, this.rate, true);
    head.setUint32(28, 2 * this.rate, true);
    head.setUint16(32, 2, true); // bytes a frame
    head.setUint16(34, 16, true); // bits a sample
    text(36, "data");
    head.setUint32(40, bytes, true);
    return new Blob([head, ...this.#chunks], { type: "audio/wav" });
  }
}

function microphoneError(error) {
  if (error.name === "NotAllowedError") {
    return new ApiError("The browser does not let this page use the microphone.", "Allow it in the page's settings (beside its address), then record again.");
  }
  if (error.name === "NotFoundError") {
    return new ApiError("There is no microphone.", "Connect one, or choose a file.");
  }
  if (error.name === "NotReadableError") {
    return new ApiError("The microphone is in use elsewhere.", "Close what uses it, then record again.");
  }
  return new ApiError(`The microphone cannot be used (${error.name}).`, "Choose a file instead.");
}
