// The page: what is dropped, chosen or recorded is asked about, and its answers are listed, newest first.

import { askForKey } from "./api.js";
import { showCard } from "./card.js";
import { announce, byId, clock, make } from "./dom.js";
import { Live, words } from "./live.js";
import { whyNot } from "./microphone.js";
import { Result } from "./result.js";

const AT_ONCE = 2; // requests; the others wait here rather than in the endpoint's queue

const language = () => byId("language").value || null;

const queue = [];
let running = 0;

function work() {
  while (running < AT_ONCE && queue.length) {
    const result = queue.shift();
    if (!result.element.isConnected) continue;
    running++;
    result.ask().then((answered) => {
      running--;
      work();
      if (answered) showCard(); // it may have been refused for want of a key, or of the model
    });
  }
}

function add(name, blob) {
  const result = new Result(name, blob, language());
  byId("results").prepend(result.element);
  return result;
}

function take(files) {
  if (!files.length) return;
  announce(files.length === 1 ? `Sending ${files[0].name}` : `Sending ${files.length} recordings`);
  // the first file is the first on the page
  const results = [...files].reverse().map((file) => add(file.name, file));
  queue.push(...results.reverse());
  work();
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // the same file may be chosen again
});

let dragged = 0; // enter and leave come for every element on the way
const carriesFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
const mark = (by) => {
  dragged = Math.max(0, dragged + by);
  byId("drop").classList.toggle("over", dragged > 0);
};
addEventListener("dragenter", (event) => carriesFiles(event) && mark(1));
addEventListener("dragleave", (event) => carriesFiles(event) && mark(-1));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault(); // or the browser would open the file in place of the page
  mark(-dragged);
  take(event.dataTransfer.files);
});

let live = null; // a Live, or "busy" between two states
let recorded = 0;

function recording(state) {
  const button = byId("record");
  button.classList.toggle("on", state);
  byId("record-words").textContent = state ? "Stop" : "Record";
  button.setAttribute("aria-label", state ? "Stop recording" : "Record");
}

async function start() {
  live = "busy";
  byId("record-trouble")?.remove();
  try {
    live = await Live.start(language(), stop);
    recording(true);
    announce("Recording");
  } catch (error) {
    live = null;
    const note = make("p", { id: "record-trouble", class: "note error" }, words(error));
    byId("drop").append(note);
    announce(note.textContent);
  }
}

async function stop() {
  if (!(live instanceof Live)) return;
  const ending = live;
  live = "busy";
  recording(false);
  announce("Recording stopped");
  const { blob, answer, cut } = await ending.stop();
  live = null;
  const result = add(`Recording ${++recorded}`, blob);
  if (answer) {
    await result.show(answer, cut > 0.1 ? [`The answer is about the last ${clock(answer.duration_s - cut)} of it.`] : []);
  } else {
    queue.push(result);
    work();
  }
}

byId("record").addEventListener("click", () => {
  if (live === null) start();
  else stop();
});
byId("discard").addEventListener("click", async () => {
  if (!(live instanceof Live)) return;
  const ending = live;
  live = "busy";
  byId("record").focus(); // the button goes
  recording(false);
  await ending.discard();
  live = null;
  announce("Recording discarded");
});

const unable = whyNot();
if (unable) {
  byId("record").disabled = true;
  byId("record-note").prepend(`${unable} `);
}

byId("change-key").addEventListener("click", async () => {
  if (await askForKey("The new one takes the place of the one you gave.")) showCard();
});
byId("card").addEventListener("toggle", ({ target }) => target.open && showCard());
showCard();
