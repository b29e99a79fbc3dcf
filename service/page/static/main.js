// The start of the page: its parts, the key, and what is shown when the server is gone or back.

import { getJson, hasKey, inWords, send, setKey, signals } from "./api.js";
import { showArtifact } from "./artifact.js";
import { changes, chosen, readArtifacts } from "./artifacts.js";
import { showConnect } from "./connect.js";
import { startCopying } from "./copying.js";
import { byId, save } from "./dom.js";
import { showFeedback } from "./feedback.js";
import { leaveJobs, showJobs } from "./jobs.js";
import { current, startNavigation } from "./navigation.js";
import { showPlayground } from "./playground.js";
import { showServer } from "./server.js";

const WAIT_MS = 2000;
const LOOK_MS = 10_000;
const shows = {
  playground: showPlayground,
  artifact: showArtifact,
  jobs: showJobs,
  feedback: showFeedback,
  connect: showConnect,
  server: showServer,
};

function showCurrent() {
  if (current() !== "jobs") leaveJobs();
  const model = chosen()?.corrects;
  byId("goes-to").textContent = model ? `, which asks the model ${model} elsewhere about it` : " alone";
  shows[current()]();
}

function state(kind, words) {
  byId("state-dot").dataset.kind = kind;
  if (byId("state").textContent !== words) byId("state").textContent = words;
}

let gone = false;
let looking = null;

async function look() {
  clearTimeout(looking);
  // Nobody looks: the next look is when somebody does.
  if (document.hidden) return;
  try {
    await getJson("health/ready");
    state("good", "ready");
    if (chosen() === null && byId("key-form").hidden) await refresh();
  } catch (error) {
    if (error.code === "unreachable") state("bad", "not answering");
    else state("busy", error.code === "not_ready" ? `starting: ${error.message}` : inWords(error));
  }
  clearTimeout(looking);
  looking = setTimeout(look, gone || byId("state-dot").dataset.kind !== "good" ? WAIT_MS : LOOK_MS);
}

async function refresh() {
  try {
    await readArtifacts();
  } catch {
    return; // said by the key's form, or by the banner
  }
  showCurrent();
}

signals.addEventListener("gone", () => {
  if (gone) return;
  gone = true;
  byId("gone").textContent = "The server does not answer. This page tries again every two seconds; what you typed stays.";
  byId("gone").hidden = false;
  state("bad", "not answering");
  clearTimeout(looking);
  looking = setTimeout(look, WAIT_MS);
});
signals.addEventListener("answered", () => {
  if (!gone) return;
  gone = false;
  byId("gone").hidden = true;
  refresh();
});

signals.addEventListener("key-needed", () => {
  const form = byId("key-form");
  if (!form.hidden) return;
  form.hidden = false;
  byId("key-used").hidden = true;
  byId("key").focus();
});
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = byId("key-problem");
  problem.textContent = "";
  // A key is of visible ASCII characters; what is not can be no header.
  const value = byId("key").value.trim();
  if (!/^[!-~]+$/.test(value)) {
    problem.textContent = "This is no key of this server.";
    return;
  }
  setKey(value);
  try {
    await readArtifacts();
  } catch (error) {
    setKey(null);
    problem.textContent = error.status === 401 ? "This is no key of this server." : inWords(error);
    byId("key").select();
    return;
  }
  byId("key").value = "";
  byId("key-form").hidden = true;
  byId("key-used").hidden = false;
  showCurrent();
  byId(`${current()}-title`).focus({ preventScroll: true });
});
byId("key-forget").addEventListener("click", () => location.reload());

// Opened as a file, a report has none of the server's headers: what forbids its maker's scripts goes before all of it.
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'";
const HEAD = `<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${POLICY}">\n`;
const withPolicy = (blob) => new Blob([HEAD, blob], { type: "text/html" });

// A link cannot send a key: with one, this page fetches what the link names and saves it.
document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[data-fetched]");
  if (!link || !hasKey()) return;
  event.preventDefault();
  try {
    const blob = await (await send("GET", link.getAttribute("href"))).blob();
    const name = link.dataset.fetched;
    save(name.endsWith(".html") ? withPolicy(blob) : blob, name);
  } catch (error) {
    byId(`${current()}-problem`)?.replaceChildren(inWords(error));
  }
});

changes.addEventListener("change", showCurrent);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
startCopying();
startNavigation(showCurrent);
refresh();
look();
