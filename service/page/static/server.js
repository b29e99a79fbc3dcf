// The server's state: whether it is ready, what waits, what runs, and every operation that it answers.

import { getJson, inWords, send } from "./api.js";
import { known } from "./artifacts.js";
import { gauge } from "./charts.js";
import { byId, bytes, elsewhere, facts, make, table } from "./dom.js";

const LOOK_MS = 5000;
let timer = null;
let contract = null;

// Returns the sum of a metric's series in Prometheus' text format, and the labels of its first one.
export function metric(text, name) {
  let value = null;
  let labels = {};
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (match === null || match[1] !== name) continue;
    if (value === null) labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    value = (value ?? 0) + Number(match[3]);
  }
  return { value, labels };
}

// Returns how many requests were refused or failed, and why; to ask whether it is ready while it loads is no fault.
function refusals(text) {
  const reasons = new Map();
  for (const [, reason, count] of text.matchAll(/^laplora_rejects_total\{reason="(\w+)"\} (\S+)$/gm)) {
    if (Number(count) > 0) reasons.set(reason, Number(count));
  }
  const early = reasons.get("not_ready") ?? 0;
  reasons.delete("not_ready");
  const total = [...reasons.values()].reduce((sum, count) => sum + count, 0);
  const which = [...reasons].map(([reason, count]) => `${count} ${reason}`).join(", ");
  return `${total}${which && ` (${which})`}${early > 0 ? `; ${early} more came before it was ready` : ""}`;
}

function load(text) {
  const of = (name) => metric(text, `laplora_${name}`).value ?? 0;
  const rows = [["Inputs", "queue_rows", "queue_max_rows"], ["Tokens", "queue_tokens", "queue_max_tokens"]].map(
    ([head, now, most]) => [
      `${head} that wait`,
      `${of(now)} of ${of(most)}`,
      gauge({ value: of(now), limit: null, reference: null, high: of(most) || 1, bad: false, words: `${of(now)} of ${of(most)}` }),
    ]);
  return [
    table("The queue", ["What", "Now", "Picture"], rows),
    facts([
      ["Longest wait of those", `${of("queue_oldest_age_seconds").toFixed(1)} s`],
      ["Requests open now, this page’s too", String(of("requests_in_flight"))],
      ["Inputs answered", String(of("answers_total"))],
      ["Requests without an answer, since the start", refusals(text)],
    ]),
  ];
}

function about(text) {
  const build = metric(text, "laplora_build_info").labels;
  const memory = metric(text, "process_resident_memory_bytes").value;
  const loaded = known().filter((one) => one.loaded).map((one) => one.name);
  return facts([
    ["laplora", build.version ?? "–"],
    ["Python, torch", `${build.python ?? "–"}, ${build.torch ?? "–"}`],
    ["Version of the API", contract?.info.version ?? "–"],
    ["Artifacts loaded", loaded.join(", ") || "none"],
    ["Memory of the process", memory === null ? "–" : bytes(memory)],
  ]);
}

function operations({ paths, tags }) {
  const found = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => ({ path, method: method.toUpperCase(), ...one })));
  return tags.map((tag) => {
    const mine = found.filter((one) => one.tags.includes(tag.name));
    return make("details", {},
      make("summary", {}, `${tag.name} `, make("span", { class: "note" }, tag.description)),
      make("ul", { class: "operations" }, mine.map((one) => make("li", {},
        make("a", { ...elsewhere, href: `docs#/${tag.name}/${one.operationId}` }, make("code", {}, `${one.method} ${one.path}`)),
        ` ${one.description?.split("\n\n")[0] ?? ""}`))));
  });
}

async function readiness() {
  try {
    const { artifact, stuck_load: stuck } = await getJson("health/ready");
    return `It is ready, and ${artifact.name} answers.${stuck === null ? "" : ` The load of ${stuck} is stuck.`}`;
  } catch (error) {
    return `It is not ready: ${inWords(error)}`;
  }
}

export async function showServer() {
  clearTimeout(timer);
  const words = await readiness();
  if (byId("server-said").textContent !== words) byId("server-said").textContent = words;
  try {
    if (contract === null) {
      contract = await getJson("openapi.json");
      byId("server-operations").replaceChildren(...operations(contract));
    }
    const text = await (await send("GET", "metrics")).text();
    byId("server-load").replaceChildren(...load(text));
    byId("server-about").replaceChildren(about(text));
    byId("server-problem").textContent = "";
  } catch (error) {
    byId("server-problem").textContent = inWords(error);
  }
  clearTimeout(timer);
  timer = setTimeout(() => byId("server").hidden || showServer(), LOOK_MS);
}
