// The page: recordings are dropped, chosen or recorded; their results are listed, newest first.

import { describeError, promptForKey } from "./api.js";
import { announce, byId, createElement, formatDuration } from "./dom.js";
import { LiveRecording } from "./live.js";
import { unsupportedReason } from "./microphone.js";
import { showModelInfo } from "./model.js";
import { Result } from "./result.js";

const MAX_CONCURRENT_REQUESTS = 2; // the other recordings wait on the page, not in the queue of the endpoint

const selectedLanguage = () => byId("language").value || null;

const queue = [];
let running = 0;

function processQueue() {
  while (running < MAX_CONCURRENT_REQUESTS && queue.length) {
    const result = queue.shift();
    if (!result.element.isConnected) continue;
    running++;
    result.submit().then((succeeded) => {
      running--;
      processQueue();
      if (succeeded) showModelInfo(); // it may have failed before, without a key or while the model was unavailable
    });
  }
}

function addResult(name, blob) {
  const result = new Result(name, blob, selectedLanguage());
  byId("results").prepend(result.element);
  return result;
}

function addFiles(files) {
  if (!files.length) return;
  announce(files.length === 1 ? `Sending ${files[0].name}` : `Sending ${files.length} recordings`);
  // results are prepended: in reverse order the first file is at the top
  const results = [...files].reverse().map((file) => addResult(file.name, file));
  queue.push(...results.reverse());
  processQueue();
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  addFiles(target.files);
  target.value = ""; // allows the user to choose the same file again
});

let dragDepth = 0; // dragenter and dragleave fire for every element under the pointer
const carriesFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
const updateDragState = (change) => {
  dragDepth = Math.max(0, dragDepth + change);
  byId("drop").classList.toggle("over", dragDepth > 0);
};
addEventListener("dragenter", (event) => carriesFiles(event) && updateDragState(1));
addEventListener("dragleave", (event) => carriesFiles(event) && updateDragState(-1));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault(); // by default the browser would open the file and leave the page
  updateDragState(-dragDepth);
  addFiles(event.dataTransfer.files);
});

let live = null; // null, a LiveRecording, or "busy" while one starts or ends
let recordingCount = 0;

function setRecording(active) {
  const button = byId("record");
  button.classList.toggle("on", active);
  byId("record-label").textContent = active ? "Stop" : "Record";
  button.setAttribute("aria-label", active ? "Stop recording" : "Record");
}

async function startRecording() {
  live = "busy";
  byId("record-error")?.remove();
  try {
    live = await LiveRecording.start(selectedLanguage(), stopRecording);
    setRecording(true);
    announce("Recording");
  } catch (error) {
    live = null;
    const note = createElement("p", { id: "record-error", class: "note error" }, describeError(error));
    byId("drop").append(note);
    announce(note.textContent);
  }
}

async function stopRecording() {
  if (!(live instanceof LiveRecording)) return;
  const ending = live;
  live = "busy";
  setRecording(false);
  announce("Recording stopped");
  const { blob, prediction, skippedSeconds } = await ending.stop();
  live = null;
  const result = addResult(`Recording ${++recordingCount}`, blob);
  if (prediction) {
    const notes =
      skippedSeconds > 0.1
        ? [`Only the last ${formatDuration(prediction.duration_s - skippedSeconds)} of the recording were analyzed.`]
        : [];
    await result.show(prediction, notes);
  } else {
    queue.push(result);
    processQueue();
  }
}

byId("record").addEventListener("click", () => {
  if (live === null) startRecording();
  else stopRecording();
});
byId("discard").addEventListener("click", async () => {
  if (!(live instanceof LiveRecording)) return;
  const ending = live;
  live = "busy";
  byId("record").focus(); // the focused button disappears
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
  if (await promptForKey("The new key replaces the current one.")) showModelInfo();
});
byId("model-info").addEventListener("toggle", ({ target }) => target.open && showModelInfo());
showModelInfo();
