// In the audio thread: passes on what the microphone hears, a tenth of a second at a time, as 16-bit samples.

class Recorder extends AudioWorkletProcessor {
  #samples = new Int16Array(Math.round(sampleRate / 10));
  #filled = 0;
  #loudest = 0;
  #ended = false;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#flush();
      this.port.postMessage({ last: true });
      this.#ended = true;
    };
  }

  process([input]) {
    if (this.#ended) return false;
    const channels = input.length;
    for (let at = 0; channels && at < input[0].length; at++) {
      let sum = 0;
      for (const channel of input) sum += channel[at];
      const value = Math.max(-1, Math.min(1, sum / channels));
      this.#loudest = Math.max(this.#loudest, Math.abs(value));
      this.#samples[this.#filled++] = Math.round(value * 32767);
      if (this.#filled === this.#samples.length) this.#flush();
    }
    return true;
  }

  #flush() {
    if (this.#filled === 0) return;
    const { buffer } = this.#samples.slice(0, this.#filled);
    this.port.postMessage({ samples: buffer, loudest: this.#loudest }, [buffer]);
    this.#filled = 0;
    this.#loudest = 0;
  }
}

registerProcessor("recorder", Recorder);
