// The chosen artifact: what it is, how its evaluation went, and which predictive it recommends.

import { address } from "./api.js";
import { chosen, known } from "./artifacts.js";
import { showChanges } from "./changes.js";
import { bar } from "./charts.js";
import { byId, bytes, elsewhere, facts, figure, listed, make, percent, table } from "./dom.js";
import { isTuned, predictiveInWords, setsInWords } from "./words.js";

const METRICS = [
  ["accuracy", "Accuracy", percent],
  ["nll", "NLL, nats", figure],
  ["ece", "ECE", figure],
  ["brier", "Brier", figure],
  ["auroc_error", "AUROC of errors", figure],
];

function identity(artifact) {
  const base = `${artifact.base_model}${artifact.quantization === "none" ? "" : `, ${artifact.quantization}`}`;
  const { type, instructions } = artifact.question ?? {};
  const asked = `${type}: ${typeof instructions === "string" ? instructions : JSON.stringify(instructions)}`;
  return facts([
    ...(artifact.corrects
      ? [["Corrects", `${artifact.corrects}, a model elsewhere`], ["Its question", asked], ["Sentence encoder", base]]
      : [["Base model", base]]),
    ["Trained", isTuned(artifact) ? "an adapter (fine-tuned)" : "heads alone; nothing is fine-tuned"],
    ["Labels", listed(artifact.labels)],
    ["Fields of an input", artifact.fields.join(", ")],
    ["Label sets", setsInWords(artifact.prediction_sets, artifact.recommended.predictive) || "–"],
    ["Memory", artifact.memory_bytes === null ? "–" : bytes(artifact.memory_bytes)],
  ]);
}

function recommended({ predictive, reason, chosen_by: by, table: compared }) {
  const who = {
    calibration: "by the calibration rows",
    labels: "by labels that came later",
    configuration: "by whoever packaged it",
  };
  const [mine, alone] = [compared?.[predictive]?.nll, compared?.map?.nll];
  const why = predictive !== "map" && typeof mine === "number" && typeof alone === "number"
    ? ` Its mean loss (NLL) on these rows was ${figure(mine)} nats, that of the model alone ${figure(alone)}.`
    : "";
  return make("div", {},
    make("h2", {}, "What it answers with"),
    make("p", {}, make("strong", {}, predictive), ` (${predictiveInWords(predictive)}), chosen ${who[by] ?? by}.${why}`),
    make("details", {}, make("summary", {}, "The comparison in full"), make("p", { class: "note" }, `${reason}.`)));
}

// A picture of the two figures that matter here, lower is better, and the table of all.
function evaluation({ metrics, report: page }, best) {
  const names = Object.keys(metrics ?? {}).filter((name) => typeof metrics[name]?.nll === "number");
  if (names.length === 0) return make("p", { class: "empty" }, page ? "Its report says how it did." : "It records no evaluation.");
  const worst = Math.max(...names.map((name) => Math.max(metrics[name].ece ?? 0, metrics[name].ece_limit ?? 0)), 1e-9);
  const limited = names.some((name) => typeof metrics[name].ece_limit === "number");
  const rows = names.map((name) => [
    make("span", {}, name, " ", make("small", {}, predictiveInWords(name))),
    ...METRICS.map(([key, , write]) => {
      const value = metrics[name][key];
      if (typeof value !== "number") return "–";
      if (key !== "ece") return write(value);
      const limit = metrics[name].ece_limit;
      const known = typeof limit === "number";
      return make("span", { class: "with-bar" },
        bar(name === best ? "served" : name === "map" ? "map" : "plain", value / worst, known ? limit / worst : null),
        make("span", {}, write(value), known ? make("small", { class: value > limit ? "bad" : "note" }, value > limit ? ` more than chance (${figure(limit)})` : ` chance: to ${figure(limit)}`) : null));
    }),
  ]);
  const count = metrics[names[0]].rows;
  return make("div", {},
    make("h2", {}, "How it did on its test rows"),
    make("p", { class: "note" }, `${count === undefined ? "" : `${count} rows, each answered without its own label. `}NLL, ECE (how far confidence is from accuracy) and Brier: lower is better. AUROC: how well its doubt finds its mistakes, 0.5 is chance. The row in bold answers.`),
    limited ? make("p", { class: "legend" }, make("span", { class: "key line limit" }), "ECE that chance alone makes of a calibrated model, in all but one of 40 cases") : null,
    table("Metrics by way to answer", ["Way to answer", ...METRICS.map(([, head]) => head)], rows, {
      highlighted: (i) => names[i] === best,
    }));
}

function report(artifact) {
  if (!artifact.report) return null;
  const path = typeof artifact.report === "string" ? artifact.report.replace(/^\//, "") : `artifacts/${encodeURIComponent(artifact.name)}/report`;
  // The server names a path of its own; anything else is no report of it.
  if (address(path).origin !== location.origin) return null;
  return make("p", { class: "actions" },
    make("a", { href: path, ...elsewhere, "data-fetched": `${artifact.name}-report.html`, class: "button" }, "Open its report"));
}

function others() {
  const rows = known().map((one) => [
    one.name,
    one.error === null ? (one.active ? "answers where a request names none" : one.loaded ? "loaded" : "not loaded") : one.error,
    one.corrects ? `${one.base_model}, for ${one.corrects}` : (one.base_model ?? "–"),
  ]);
  return make("div", {}, make("h2", {}, "All artifacts"), table("All artifacts of this server", ["Name", "State", "Base model"], rows));
}

export function showArtifact() {
  byId("artifact-problem").textContent = "";
  showChanges(showArtifact);
  const artifact = chosen();
  if (artifact === null) {
    byId("artifact-about").replaceChildren(make("p", { class: "empty" }, "No artifact is loaded yet."));
    return;
  }
  const best = artifact.recommended.predictive;
  byId("artifact-about").replaceChildren(
    ...[
      make("h2", {}, artifact.name),
      identity(artifact),
      make("p", { class: "note" }, "Hash of its content: ", make("code", {}, artifact.digest)),
      recommended(artifact.recommended),
      report(artifact),
      evaluation(artifact, best),
      others(),
    ].filter(Boolean),
  );
}
