// The artifacts that the server has, and the one that this page asks.

import { getJson } from "./api.js";
import { byId, make } from "./dom.js";

const choice = byId("artifact-choice");
export const changes = new EventTarget();
let all = [];
let active = null;

export const known = () => all;
export const chosen = () => all.find((one) => one.name === choice.value && one.loaded) ?? null;
// What a request has to name: nothing, where the active one is meant.
export const named = () => (chosen() === null || chosen().name === active ? null : chosen().name);

export async function readArtifacts() {
  const answer = await getJson("artifacts");
  const before = JSON.stringify(chosen());
  const wanted = choice.value;
  all = answer.artifacts;
  active = answer.active;
  const loaded = all.filter((one) => one.loaded);
  choice.replaceChildren(...loaded.map((one) => make("option", { value: one.name }, one.name)));
  if (loaded.length === 0) choice.append(make("option", {}, "none yet"));
  choice.disabled = loaded.length < 2;
  choice.value = loaded.some((one) => one.name === wanted) ? wanted : (active ?? choice.value);
  if (JSON.stringify(chosen()) !== before) changes.dispatchEvent(new Event("change"));
}

choice.addEventListener("change", () => changes.dispatchEvent(new Event("change")));
