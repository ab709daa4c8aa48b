// A recording in progress: its level, its length, and the rolling results of the endpoint.

import { Stream } from "./api.js";
import { announce, byId, formatDuration } from "./dom.js";
import { createProbabilityTable, formatEmotion } from "./emotions.js";
import { Microphone } from "./microphone.js";

/** A recording in progress, created by `LiveRecording.start`. */
export class LiveRecording {
  #microphone;
  #stream = null;
  #results = [];
  #table = null;
  #emotion = null;
  #stopped = false;
  #level = 0;
  #resolveFinal;
  #final = new Promise((resolve) => (this.#resolveFinal = resolve));

  /** Open microphone and stream; `onLost` is called if the microphone is disconnected. */
  static async start(language, onLost) {
    const live = new LiveRecording();
    const queued = []; // samples recorded before the stream is open
    const onSamples = (samples, peak) => {
      if (live.#stream) live.#stream.send(samples);
      else queued.push(samples);
      live.#updateMeter(peak);
    };
    live.#microphone = await Microphone.open({ onSamples, onLost });
    live.#open(language, queued);
    return live;
  }

  #open(language, queued) {
    byId("live-note").hidden = true;
    byId("discard").hidden = false;
    byId("live-status").textContent = "Waiting for the first result …";
    byId("live-bars").replaceChildren();
    this.#updateMeter(0);
    byId("live").hidden = false;
    this.#stream = new Stream({
      rate: this.#microphone.rate,
      language,
      onResult: (result) => this.#show(result),
      onFinal: (result) => this.#resolveFinal(result),
      onError: (message) => this.#handleError(message),
    });
    for (const samples of queued) this.#stream.send(samples);
  }

  /**
   * Stop recording. Return the recording and the prediction of the stream, which is null if the stream failed, so that
   * the recording has to be sent; `skippedSeconds` of its start are not part of the prediction.
   */
  async stop() {
    this.#stopped = true;
    byId("discard").hidden = true;
    byId("live-status").textContent = "Waiting for the final result …";
    await this.#microphone.close();
    this.#stream.end();
    const final = await this.#final;
    byId("live").hidden = true;
    const blob = this.#microphone.wav();
    return { blob, prediction: final && this.#toPrediction(final), skippedSeconds: final?.start_s ?? 0 };
  }

  /** Stop recording and discard the audio. */
  async discard() {
    this.#stream.close();
    byId("live").hidden = true;
    await this.#microphone.close();
  }

  /** Convert the final result to the form of a prediction for a file, with the rolling results as its timeline. */
  #toPrediction(final) {
    const { start_s, end_s: end, ...prediction } = final;
    const segments = this.#results.length ? this.#results : [final];
    return { ...prediction, duration_s: end, segments };
  }

  #show(result) {
    this.#results.push(result);
    if (this.#table) this.#table.update(result.probabilities);
    else {
      this.#table = createProbabilityTable(result.probabilities, "Probabilities of the last seconds");
      byId("live-bars").replaceChildren(this.#table.element);
    }
    byId("live-status").textContent = `Last ${Math.round(result.end_s - result.start_s)} s: ${formatEmotion(result)}`;
    if (result.emotion !== this.#emotion) announce(`So far: ${formatEmotion(result)}`); // only changes, not every second
    this.#emotion = result.emotion;
  }

  #handleError(message) {
    this.#resolveFinal(null);
    if (this.#stopped) return; // the complete recording is sent instead
    const note = byId("live-note");
    note.textContent = `No results while recording: ${message} The recording continues and is sent when you stop it.`;
    note.hidden = false;
    announce(note.textContent);
  }

  #updateMeter(peak) {
    byId("elapsed").textContent = formatDuration(this.#microphone?.seconds ?? 0);
    this.#level = Math.max(peak, 0.8 * this.#level); // falls slowly, so that short sounds stay visible
    const decibels = 20 * Math.log10(Math.max(this.#level, 1e-3)); // -60 dB or less shows an empty meter
    byId("level").firstElementChild.style.transform = `scaleX(${1 + decibels / 60})`;
  }
}
