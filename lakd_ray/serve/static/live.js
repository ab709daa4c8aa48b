// A recording while it is made: its level, its clock, and what the endpoint hears so far.

import { ApiError, Stream } from "./api.js";
import { announce, byId, formatDuration } from "./dom.js";
import { bars, formatEmotion } from "./emotions.js";
import { Microphone } from "./microphone.js";

/** A recording under way. Make it with `LiveRecording.start`. */
export class LiveRecording {
  #microphone;
  #stream = null;
  #results = [];
  #bars = null;
  #emotion = null;
  #stopped = false;
  #level = 0;
  #resolveFinal;
  #final = new Promise((resolve) => (this.#resolveFinal = resolve));

  /** Open microphone and stream; `onLost` is called if the microphone goes away. */
  static async start(language, onLost) {
    const live = new LiveRecording();
    const waiting = []; // what is heard before the stream is there
    const onSamples = (samples, loudest) => {
      if (live.#stream) live.#stream.send(samples);
      else waiting.push(samples);
      live.#meter(loudest);
    };
    live.#microphone = await Microphone.open({ onSamples, onLost });
    live.#open(language, waiting);
    return live;
  }

  #open(language, waiting) {
    byId("live-note").hidden = true;
    byId("discard").hidden = false;
    byId("live-status").textContent = "Listening …";
    byId("live-bars").replaceChildren();
    this.#meter(0);
    byId("live").hidden = false;
    this.#stream = new Stream({
      rate: this.#microphone.rate,
      language,
      onResult: (heard) => this.#show(heard),
      onFinal: (heard) => this.#resolveFinal(heard),
      onError: (why) => this.#broken(why),
    });
    for (const samples of waiting) this.#stream.send(samples);
  }

  /** The recording, and its answer from the stream: null if the stream broke off, so that it has to be asked for. */
  async stop() {
    this.#stopped = true;
    byId("discard").hidden = true;
    byId("live-status").textContent = "Waiting for the final answer …";
    await this.#microphone.close();
    this.#stream.end();
    const final = await this.#final;
    byId("live").hidden = true;
    const blob = this.#microphone.wav();
    return { blob, answer: final && this.#answer(final), cut: final?.start_s ?? 0 };
  }

  /** Forget it. */
  async discard() {
    this.#stream.close();
    byId("live").hidden = true;
    await this.#microphone.close();
  }

  /** The final answer in the form of an answer to a file, with the rolling ones as its timeline. */
  #answer(final) {
    const { start_s: start, end_s: end, ...answer } = final;
    const segments = this.#results.length ? this.#results : [final];
    return { ...answer, duration_s: end, segments };
  }

  #show(heard) {
    this.#results.push(heard);
    if (this.#bars) this.#bars.update(heard.probabilities);
    else {
      this.#bars = bars(heard.probabilities, "Probabilities of the last seconds");
      byId("live-bars").replaceChildren(this.#bars.element);
    }
    byId("live-status").textContent = `The last ${Math.round(heard.end_s - heard.start_s)} s sound like: ${formatEmotion(heard)}`;
    if (heard.emotion !== this.#emotion) announce(`So far: ${formatEmotion(heard)}`); // not each second
    this.#emotion = heard.emotion;
  }

  #broken(why) {
    this.#resolveFinal(null);
    if (this.#stopped) return; // it is sent now
    const note = byId("live-note");
    note.textContent = `No answers while recording: ${why} The recording goes on and is sent when you stop it.`;
    note.hidden = false;
    announce(note.textContent);
  }

  #meter(loudest) {
    byId("elapsed").textContent = formatDuration(this.#microphone?.seconds ?? 0);
    this.#level = Math.max(loudest, 0.8 * this.#level); // falls slowly, or short sounds would not be seen
    const decibels = 20 * Math.log10(Math.max(this.#level, 1e-3)); // -60 dB and less is an empty meter
    byId("level").firstElementChild.style.transform = `scaleX(${1 + decibels / 60})`;
  }
}

/** What went wrong, and what to do. */
export const describeError = (error) => (error instanceof ApiError ? `${error.message} ${error.advice}` : `Something went wrong (${error.message}).`);
