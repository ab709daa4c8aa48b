// Requests to the endpoint. URLs are relative, so that the page also works behind a gateway that adds a path prefix.

import { byId } from "./dom.js";

const MAX_ATTEMPTS = 4; // for a request to a busy endpoint
const MAX_WAIT_S = 20;

/** A failed request, with advice for the user and the HTTP status (0 without a response). */
export class ApiError extends Error {
  constructor(message, advice, status = 0) {
    super(message);
    this.advice = advice;
    this.status = status;
  }
}

/** Return what went wrong and what to do. */
export const describeError = (error) =>
  error instanceof ApiError ? `${error.message} ${error.advice}` : `Something went wrong (${error.message}).`;

const ADVICE = {
  400: "Try again.",
  401: "Enter an API key, which the operator of the endpoint provides.",
  408: "Try again, or send a shorter recording.",
  413: "Send a shorter part of the recording.",
  415: "Send an audio file, such as WAV, FLAC, OGG or MP3.",
  422: "Check that the file can be played, then convert it to WAV, FLAC, OGG or MP3.",
  429: "The endpoint is busy. Try again in a moment.",
  503: "The model is unavailable. Try again in a moment.",
};

let key = null; // only in memory, so that closing the page removes it
let keyPrompt = null;

/** Prompt for an API key and return it, or null if the user cancels. Concurrent requests share one dialog. */
export function promptForKey(reason) {
  keyPrompt ??= new Promise((resolve) => {
    const [dialog, field] = [byId("key-dialog"), byId("key")];
    const settle = (value) => {
      field.value = "";
      dialog.close();
      keyPrompt = null;
      resolve(value);
    };
    byId("key-reason").textContent = reason;
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

const KEY_NOTICE = "The page does not store the key: it is gone when you close or reload the page.";

/** Send a request and return its successful response. Prompts for a key, and retries while the endpoint is busy. */
async function sendRequest(path, options, onWait = () => {}) {
  for (let attempt = 1; ; attempt++) {
    const usedKey = key;
    const headers = { ...options.headers, ...(usedKey && { Authorization: `Bearer ${usedKey}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(
        "The endpoint did not respond.",
        "Check that it is running and that you are online, then try again. If the file is very large, send a shorter part.",
      );
    }
    if (response.ok) return response;
    const { status } = response;
    if (status === 401) {
      const reason = usedKey
        ? `The endpoint rejected that key. ${KEY_NOTICE}`
        : `The operator of the endpoint provides keys. ${KEY_NOTICE}`;
      if (key !== usedKey || (await promptForKey(reason))) {
        attempt = 0;
        continue;
      }
    } else if ((status === 429 || status === 503) && attempt < MAX_ATTEMPTS) {
      const retryAfter = Number(response.headers.get("Retry-After") ?? NaN); // NaN for a date, too
      const seconds = Number.isNaN(retryAfter) ? 1 : Math.min(retryAfter, MAX_WAIT_S);
      onWait(seconds);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    throw new ApiError(
      await errorMessage(response),
      ADVICE[status] ?? "Try again. If that does not help, see the log of the endpoint.",
      status,
    );
  }
}

async function errorMessage(response) {
  try {
    const { error } = await response.json();
    if (error) return toSentence(error);
  } catch {
    // a gateway between page and endpoint may respond with something other than JSON
  }
  return `The endpoint responded with status ${response.status}.`;
}

/** Turn a message of the endpoint into a sentence: capital letter, final period. */
export const toSentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Return the metadata of the served model. */
export async function fetchModelInfo() {
  return (await sendRequest("v1/model", {})).json();
}

/** Return the prediction for a recording, with a timeline. `seconds` is the recording's length, if known. */
export async function predict(blob, { language, seconds, onWait, signal }) {
  const hop = Math.max(1, Math.ceil((seconds ?? 0) / 300)); // the endpoint limits the number of segments
  const query = new URLSearchParams({ window_s: 2 * hop, hop_s: hop, ...(language && { language }) });
  const type = blob.type.startsWith("audio/") ? blob.type : "application/octet-stream";
  const options = { method: "POST", body: blob, headers: { "Content-Type": type }, signal };
  return (await sendRequest(`v1/emotion?${query}`, options, onWait)).json();
}

/**
 * Audio that is sent while it is recorded. Samples are queued until the connection is open.
 *
 * `onResult` is called with each rolling result, `onFinal` once with the final one, and `onError` once with a message if
 * the stream ends before the final result.
 */
export class Stream {
  #socket;
  #queued = [];
  #closed = false;

  constructor({ rate, language, onResult, onFinal, onError }) {
    const query = new URLSearchParams({ format: "pcm16", rate, window_s: 3, hop_s: 1, ...(language && { language }) });
    const url = new URL(`v1/stream?${query}`, document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.#socket = new WebSocket(url);
    this.#socket.onopen = () => {
      if (key) this.#socket.send(JSON.stringify({ key }));
      for (const message of this.#queued) this.#socket.send(message);
      this.#queued = null;
    };
    this.#socket.onmessage = ({ data }) => {
      const result = JSON.parse(data);
      if (result.error) this.#finish(() => onError(toSentence(result.error)));
      else if (result.final) this.#finish(() => onFinal(result));
      else if (!this.#closed) onResult(result);
    };
    this.#socket.onclose = () => this.#finish(() => onError("The connection ended."));
  }

  /** Send samples, the buffer of an Int16Array. */
  send(samples) {
    this.#sendOrQueue(samples);
  }

  /** End the recording and request the final result. */
  end() {
    this.#sendOrQueue(JSON.stringify({ type: "end" }));
  }

  /** Close the stream without waiting for a result. */
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
