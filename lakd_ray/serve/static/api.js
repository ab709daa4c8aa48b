// What is asked of the endpoint. Addresses are relative, so that the page works behind a gateway's prefix.

import { byId } from "./dom.js";

const TRIES = 4; // of a request that the endpoint is too busy for
const LONGEST_WAIT_S = 20;

/** Why there is no answer, and what to do. */
export class ApiError extends Error {
  constructor(message, advice, status = 0) {
    super(message);
    this.advice = advice;
    this.status = status;
  }
}

const ADVICE = {
  400: "Try again.",
  401: "Give a key, or ask the endpoint's operator for one.",
  408: "Try again, or send a shorter recording.",
  413: "Send a shorter part of it.",
  415: "Send a sound file, such as WAV, FLAC, OGG or MP3.",
  422: "Check that the file plays; if it does, convert it to WAV, FLAC, OGG or MP3.",
  429: "The endpoint is busy. Try again in a moment.",
  503: "The model is not there at the moment. Try again in a moment.",
};

let key = null; // in memory alone
let keyPrompt = null;

/** The key as it was given, or null. */
export const currentKey = () => key;

/** Ask for a key; null if none is given. Several requests that need one at once wait for the same dialog. */
export function promptForKey(why) {
  keyPrompt ??= new Promise((resolve) => {
    const [dialog, field] = [byId("key-dialog"), byId("key")];
    const settle = (value) => {
      field.value = "";
      dialog.close();
      keyPrompt = null;
      resolve(value);
    };
    byId("key-reason").textContent = why;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = field.value.trim();
      byId("change-key").hidden = false;
      settle(key);
    };
    byId("key-cancel").onclick = () => settle(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      settle(null);
    };
    dialog.showModal();
  });
  return keyPrompt;
}

const KEY_NOTICE = "The page forgets it when it is closed or loaded again.";

/** A response that is not an error; asks for a key, and waits while the endpoint is busy. */
async function sendRequest(path, options, onWait = () => {}) {
  for (let tried = 1; ; tried++) {
    const used = key;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(
        "The endpoint did not answer.",
        "See whether it runs and you are online, then try again. A very large file may have been cut off: send a shorter part.",
      );
    }
    if (response.ok) return response;
    const { status } = response;
    if (status === 401) {
      const why = used ? `That key was not accepted. ${KEY_NOTICE}` : `Its operator gives keys. ${KEY_NOTICE}`;
      if (key !== used || (await promptForKey(why))) {
        tried = 0;
        continue;
      }
    } else if ((status === 429 || status === 503) && tried < TRIES) {
      const retryAfter = Number(response.headers.get("Retry-After") ?? "a date");
      const seconds = Number.isNaN(retryAfter) ? 1 : Math.min(retryAfter, LONGEST_WAIT_S);
      onWait(seconds);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    throw new ApiError(await reason(response), ADVICE[status] ?? "Try again; if it stays, the endpoint's log has more.", status);
  }
}

async function reason(response) {
  try {
    const { error } = await response.json();
    if (error) return sentence(error);
  } catch {
    // a gateway in between answers in its own way
  }
  return `The endpoint answered with status ${response.status}.`;
}

/** An error's text as a sentence. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** What is being served. */
export async function fetchModelInfo() {
  return (await sendRequest("v1/model", {})).json();
}

/** The answer to a recording, with a timeline. `seconds` is its length if that is known. */
export async function predict(blob, { language, seconds, onWait, signal }) {
  const hop = Math.max(1, Math.ceil((seconds ?? 0) / 300)); // the endpoint refuses timelines of very many segments
  const query = new URLSearchParams({ window_s: 2 * hop, hop_s: hop, ...(language && { language }) });
  const type = blob.type.startsWith("audio/") ? blob.type : "application/octet-stream";
  const options = { method: "POST", body: blob, headers: { "Content-Type": type }, signal };
  return (await sendRequest(`v1/emotion?${query}`, options, onWait)).json();
}

/**
 * Sound that is answered while it is recorded. Samples that are given before it is open wait.
 *
 * onResult is called with each rolling answer; onError once, with why, if it ends before the final answer.
 */
export class Stream {
  #socket;
  #queued = [];
  #closed = false;

  constructor({ rate, language, onResult, onFinal, onError }) {
    const query = new URLSearchParams({ format: "pcm16", rate, window_s: 3, hop_s: 1, ...(language && { language }) });
    const address = new URL(`v1/stream?${query}`, document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    this.#socket = new WebSocket(address);
    this.#socket.onopen = () => {
      if (key) this.#socket.send(JSON.stringify({ key }));
      for (const message of this.#queued) this.#socket.send(message);
      this.#queued = null;
    };
    this.#socket.onmessage = ({ data }) => {
      const result = JSON.parse(data);
      if (result.error) this.#finish(() => onError(sentence(result.error)));
      else if (result.final) this.#finish(() => onFinal(result));
      else if (!this.#closed) onResult(result);
    };
    this.#socket.onclose = () => this.#finish(() => onError("The connection ended."));
  }

  /** Samples (Int16Array's buffer). */
  send(samples) {
    this.#sendOrQueue(samples);
  }

  /** Nothing more comes: the final answer, please. */
  end() {
    this.#sendOrQueue(JSON.stringify({ type: "end" }));
  }

  /** Nobody waits for an answer any more. */
  close() {
    this.#finish(() => {});
  }

  #sendOrQueue(message) {
    if (this.#closed) return;
    if (this.#queued) this.#queued.push(message);
    else this.#socket.send(message);
  }

  #finish(callback) {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
    callback();
  }
}
