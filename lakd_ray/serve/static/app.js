// The page: what is dropped, chosen or recorded is asked about, and its answers are listed, newest first.

import { promptForKey } from "./api.js";
import { showCard } from "./card.js";
import { announce, byId, formatDuration, make } from "./dom.js";
import { LiveRecording, describeError } from "./live.js";
import { unsupportedReason } from "./microphone.js";
import { Result } from "./result.js";

const MAX_CONCURRENT_REQUESTS = 2; // requests; the others wait here rather than in the endpoint's queue

const language = () => byId("language").value || null;

const queue = [];
let running = 0;

function processQueue() {
  while (running < MAX_CONCURRENT_REQUESTS && queue.length) {
    const result = queue.shift();
    if (!result.element.isConnected) continue;
    running++;
    result.submit().then((answered) => {
      running--;
      processQueue();
      if (answered) showCard(); // it may have been refused for want of a key, or of the model
    });
  }
}

function addResult(name, blob) {
  const result = new Result(name, blob, language());
  byId("results").prepend(result.element);
  return result;
}

function addFiles(files) {
  if (!files.length) return;
  announce(files.length === 1 ? `Sending ${files[0].name}` : `Sending ${files.length} recordings`);
  // the first file is the first on the page
  const results = [...files].reverse().map((file) => addResult(file.name, file));
  queue.push(...results.reverse());
  processQueue();
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  addFiles(target.files);
  target.value = ""; // the same file may be chosen again
});

let dragged = 0; // enter and leave come for every element on the way
const carriesFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
const updateDragState = (by) => {
  dragged = Math.max(0, dragged + by);
  byId("drop").classList.toggle("over", dragged > 0);
};
addEventListener("dragenter", (event) => carriesFiles(event) && updateDragState(1));
addEventListener("dragleave", (event) => carriesFiles(event) && updateDragState(-1));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault(); // or the browser would open the file in place of the page
  updateDragState(-dragged);
  addFiles(event.dataTransfer.files);
});

let live = null; // a LiveRecording, or "busy" between two states
let recorded = 0;

function setRecording(state) {
  const button = byId("record");
  button.classList.toggle("on", state);
  byId("record-label").textContent = state ? "Stop" : "Record";
  button.setAttribute("aria-label", state ? "Stop recording" : "Record");
}

async function start() {
  live = "busy";
  byId("record-error")?.remove();
  try {
    live = await LiveRecording.start(language(), stop);
    setRecording(true);
    announce("Recording");
  } catch (error) {
    live = null;
    const note = make("p", { id: "record-error", class: "note error" }, describeError(error));
    byId("drop").append(note);
    announce(note.textContent);
  }
}

async function stop() {
  if (!(live instanceof LiveRecording)) return;
  const ending = live;
  live = "busy";
  setRecording(false);
  announce("Recording stopped");
  const { blob, answer, cut } = await ending.stop();
  live = null;
  const result = addResult(`Recording ${++recorded}`, blob);
  if (answer) {
    await result.show(answer, cut > 0.1 ? [`The answer is about the last ${formatDuration(answer.duration_s - cut)} of it.`] : []);
  } else {
    queue.push(result);
    processQueue();
  }
}

byId("record").addEventListener("click", () => {
  if (live === null) start();
  else stop();
});
byId("discard").addEventListener("click", async () => {
  if (!(live instanceof LiveRecording)) return;
  const ending = live;
  live = "busy";
  byId("record").focus(); // the button goes
  setRecording(false);
  await ending.discard();
  live = null;
  announce("Recording discarded");
});

const unsupported = unsupportedReason();
if (unsupported) {
  byId("record").disabled = true;
  byId("record-note").prepend(`${unsupported} `);
}

byId("change-key").addEventListener("click", async () => {
  if (await promptForKey("The new one takes the place of the one you gave.")) showCard();
});
byId("card").addEventListener("toggle", ({ target }) => target.open && showCard());
showCard();
