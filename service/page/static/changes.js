// What was loaded, activated and conditioned of late. While something is under way, it is asked again.

import { getJson, inWords } from "./api.js";
import { readArtifacts } from "./artifacts.js";
import { byId, make, table } from "./dom.js";
import { current } from "./navigation.js";

const LOOK_MS = 2000;
const SHOWN = 5;
const kinds = { load: "load", activate: "activate", condition: "learn from labels", undo_condition: "take labels back" };
let looking = null;

// Calls `onEnd` once what was under way at an earlier look has ended and the artifacts were read again.
export async function showChanges(onEnd, wasBusy = false) {
  clearTimeout(looking);
  let changes;
  try {
    ({ changes } = await getJson("changes"));
  } catch (error) {
    byId("artifact-problem").textContent = inWords(error);
    return;
  }
  const busy = changes.some((one) => one.status === "queued" || one.status === "running");
  const rows = changes.slice(0, SHOWN).map((one) => [
    `${kinds[one.kind] ?? one.kind}: ${one.artifact}`,
    one.error === null ? one.status : `${one.status}: ${one.error.message}`,
    new Date(one.created_at).toLocaleString(),
  ]);
  byId("artifact-changes").replaceChildren(...(rows.length === 0 ? [] : [
    make("h2", {}, "What changed here"), table("Changes of artifacts", ["Change", "State", "Asked for"], rows)]));
  if (busy) looking = setTimeout(() => current() === "artifact" && showChanges(onEnd, true), LOOK_MS);
  else if (wasBusy) await readArtifacts().then(onEnd, () => {}); // a failure is said by the banner
}
