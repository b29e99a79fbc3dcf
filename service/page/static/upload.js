// A file of rows, chosen, dropped or made of the playground's examples, becomes a job.

import { inWords, send } from "./api.js";
import { chosen, named } from "./artifacts.js";
import { byId, bytes, counted, make } from "./dom.js";
import { examplesFor } from "./examples.js";

const form = byId("upload");
const picker = byId("job-file");

function labelledLines(artifact) {
  const rows = examplesFor(artifact).filter((example) => example.label !== null);
  return rows.map(({ fields, label }) => `${JSON.stringify({ ...fields, label })}\n`);
}

// Says what a line looks like for the chosen artifact.
export function showUpload() {
  const artifact = chosen();
  byId("job-examples").hidden = artifact === null || labelledLines(artifact).length === 0;
  if (artifact === null) return;
  const fields = Object.fromEntries(artifact.fields.map((name) => [name, name === "choices" ? ["…", "…"] : "…"]));
  byId("job-line").textContent = JSON.stringify({ ...fields, label: artifact.labels[0] });
}

// The same key sends the same upload once, however often a broken connection makes this page try.
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Says what is wrong with a file: of the first line, or of as many as the server names.
function refuse(error) {
  byId("job-said").textContent = "";
  byId("job-problem").textContent = error.lines?.length > 0 ? `${counted(error.linesBad, "line")} cannot be used:` : inWords(error);
  byId("job-lines").replaceChildren(...(error.lines ?? []).map(({ line, message }) => make("li", {}, `Line ${line}: ${message}`)));
}

async function upload(file, onJob) {
  byId("job-problem").textContent = "";
  byId("job-lines").replaceChildren();
  byId("job-said").textContent = `Sending ${bytes(file.size)} …`;
  const query = new URLSearchParams();
  if (named() !== null) query.set("artifact", named());
  if (byId("job-truncate").checked) query.set("truncate", "true");
  if (!byId("job-keep").checked) query.set("keep_rows", "false");
  const asked = query.size > 0 ? `?${query}` : "";
  try {
    const response = await send("POST", `evaluate/jobs${asked}`, {
      body: file,
      headers: { "content-type": "application/jsonl", "idempotency-key": newKey() },
    });
    const job = await response.json();
    byId("job-said").textContent = `Every line was checked; ${counted(job.rows, "row")} (${job.rows_labelled} with a label) are in the queue.`;
    picker.value = "";
    onJob(job);
  } catch (error) {
    refuse(error);
  }
}

// Calls `onJob` with each job that the server took.
export function startUpload(onJob) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [file] = picker.files;
    if (file === undefined) byId("job-problem").textContent = "Choose a file first.";
    else upload(file, onJob);
  });
  byId("job-examples").addEventListener("click", () => {
    upload(new Blob(labelledLines(chosen())), onJob);
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    form.addEventListener(kind, (event) => {
      event.preventDefault();
      form.classList.toggle("over", kind === "dragover");
    });
  }
  // A file that misses would otherwise take the place of the page, with all that was typed.
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
  form.addEventListener("drop", (event) => {
    const [file] = event.dataTransfer.files;
    if (file !== undefined) upload(file, onJob);
  });
}
