// Runs in the audio thread: posts the samples of the microphone as 16-bit integers, a tenth of a second at a time.

class Recorder extends AudioWorkletProcessor {
  #samples = new Int16Array(Math.round(sampleRate / 10));
  #filled = 0;
  #peak = 0;
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
    for (let index = 0; channels && index < input[0].length; index++) {
      let sum = 0;
      for (const channel of input) sum += channel[index];
      const value = Math.max(-1, Math.min(1, sum / channels));
      this.#peak = Math.max(this.#peak, Math.abs(value));
      this.#samples[this.#filled++] = Math.round(value * 32767);
      if (this.#filled === this.#samples.length) this.#flush();
    }
    return true;
  }

  #flush() {
    if (this.#filled === 0) return;
    const { buffer } = this.#samples.slice(0, this.#filled);
    this.port.postMessage({ samples: buffer, peak: this.#peak }, [buffer]);
    this.#filled = 0;
    this.#peak = 0;
  }
}

registerProcessor("recorder", Recorder);
