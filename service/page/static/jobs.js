// The list of jobs, looked at while it is shown and one of them has not ended.

import { getJson, inWords } from "./api.js";
import { byId } from "./dom.js";
import { JobCard, ended } from "./job_card.js";
import { showUpload, startUpload } from "./upload.js";

const LOOK_MS = 1000;
const PAGE = 20;
const list = byId("job-list");
const cards = new Map();
let timer = null;
// Where the list goes on, and the jobs that came from there: looking again at its first page does not drop them.
let next = null;
const older = new Set();

function place(job, before) {
  const card = cards.get(job.id);
  if (card !== undefined) {
    card.update(job);
    return;
  }
  const made = new JobCard(job, forget);
  cards.set(job.id, made);
  if (before === null) list.append(made.node);
  else list.insertBefore(made.node, before);
  byId("jobs-empty").hidden = true;
}

function forget(id) {
  const { node } = cards.get(id);
  const next = (node.nextElementSibling ?? node.previousElementSibling)?.querySelector("button:not([hidden])");
  cards.delete(id);
  node.remove();
  byId("jobs-empty").hidden = cards.size > 0;
  // Focus was on a button that is gone.
  (next ?? byId("job-file")).focus();
}

async function look() {
  clearTimeout(timer);
  try {
    const { jobs, next: after } = await getJson(`evaluate/jobs?limit=${PAGE}`);
    byId("jobs-problem").textContent = "";
    const known = new Set([...jobs.map((job) => job.id), ...older]);
    if (older.size === 0) goOnAt(after);
    for (const id of [...cards.keys()].filter((id) => !known.has(id))) {
      cards.get(id).node.remove();
      cards.delete(id);
    }
    let before = list.firstElementChild;
    for (const job of jobs) {
      place(job, before);
      before = cards.get(job.id).node.nextElementSibling;
    }
    for (const id of older) {
      const card = cards.get(id);
      if (card !== undefined && !ended(card.job)) card.update(await getJson(`evaluate/jobs/${encodeURIComponent(id)}`));
    }
    byId("jobs-empty").hidden = cards.size > 0;
  } catch (error) {
    byId("jobs-problem").textContent = inWords(error);
  }
  clearTimeout(timer);
  const running = [...cards.values()].some((card) => !ended(card.job));
  if (running && !byId("jobs").hidden) timer = setTimeout(look, LOOK_MS);
}

function goOnAt(after) {
  next = after ?? null;
  byId("jobs-more").hidden = next === null;
}

byId("jobs-more").addEventListener("click", async () => {
  try {
    const { jobs, next: after } = await getJson(`evaluate/jobs?${new URLSearchParams({ limit: PAGE, before: next })}`);
    for (const job of jobs) {
      older.add(job.id);
      place(job, null);
    }
    goOnAt(after);
  } catch (error) {
    byId("jobs-problem").textContent = inWords(error);
  }
});

export function showJobs() {
  showUpload();
  look();
}

// Nobody asks for what nobody looks at.
export function leaveJobs() {
  clearTimeout(timer);
}

startUpload((job) => {
  place(job, list.firstElementChild);
  look();
});
