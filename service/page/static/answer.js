// One prediction, drawn: what to do with it, its label and probability, why, and the probability of each label.

import { bar, stacked } from "./charts.js";
import { facts, figure, listed, make, percent, table } from "./dom.js";
import { isTuned, noteOf, predictiveInWords, setsInWords, uncertaintyInWords, verdict } from "./words.js";

const MOST_LABELS = 8;

// Returns what a person reads for a label: the choice's text, where the input has choices.
const shown = (label, i, choices) => (choices?.[i] === undefined ? label : `${label}. ${choices[i]}`);

function probability(value) {
  // 0.99987 is not certain, and must not look so; nor is the rest of it nothing.
  if (value > 0.9995 && value < 1) return percent(Math.floor(value * 1e4) / 1e4, 2);
  return percent(value, value > 0 && value < 0.0005 ? 2 : 1);
}

// Returns the label and its probability; of an input of several labels those that are present.
function best({ label, label_text: text, labels, probs }) {
  const one = (name, words) => `${words}, ${probability(probs[name])}`;
  if (labels === undefined) return one(label, text);
  return labels.length === 0 ? "no label is present" : labels.map((name) => one(name, name)).join("; ");
}

function comparison(answer, served, alone, choices) {
  const labels = Object.keys(answer.probs);
  const order = labels.map((_, i) => i).sort((a, b) => answer.probs[labels[b]] - answer.probs[labels[a]]);
  const rows = order.slice(0, MOST_LABELS).map((i) => {
    const label = labels[i];
    return make("tr", { role: "row" },
      make("th", { role: "rowheader", scope: "row" }, shown(label, i, choices)),
      alone === null ? null : make("td", { role: "cell", "data-head": "Model alone" },
        bar("map", alone[label]), make("span", { class: "number" }, probability(alone[label]))),
      make("td", { role: "cell", "data-head": `Served: ${served}` },
        bar("served", answer.probs[label]),
        make("span", { class: "number" }, probability(answer.probs[label]))));
  });
  const rest = labels.length - MOST_LABELS;
  return [
    make("table", { class: "comparison", role: "table" },
      make("caption", { class: "unseen" }, "Probability of each label"),
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
        make("th", { role: "columnheader", scope: "col" }, "Label"),
        alone === null ? null : make("th", { role: "columnheader", scope: "col" }, "Model alone ", make("small", {}, "MAP")),
        make("th", { role: "columnheader", scope: "col" }, "Served ", make("small", {}, served)))),
      make("tbody", { role: "rowgroup" }, rows)),
    rest > 0 ? make("p", { class: "note" }, `and ${rest} less probable labels`) : null,
  ];
}

function uncertainty({ total, aleatoric, epistemic }, classes) {
  const whole = Math.log(Math.max(classes, 2));
  return make("div", { class: "uncertainty" },
    make("h3", {}, "Uncertainty"),
    stacked([["aleatoric", aleatoric / whole], ["epistemic", epistemic / whole]]),
    make("p", { class: "legend" },
      make("span", { class: "key aleatoric" }), `of the input (aleatoric) ${figure(aleatoric, 2)} `,
      make("span", { class: "key epistemic" }), `of the model (epistemic) ${figure(epistemic, 2)} `,
      `· together ${figure(total, 2)} of at most ${figure(whole, 2)} nats`),
    make("p", {}, uncertaintyInWords({ total, aleatoric, epistemic })));
}

function details(answer, response, classes) {
  const names = Object.keys(answer.probs);
  const others = Object.entries(answer.calibrated_probs);
  return make("details", {},
    make("summary", {}, "More of this answer"),
    answer.uncertainty === null ? null : uncertainty(answer.uncertainty, classes),
    facts([
      ["Answered by", `${answer.answered_by}: ${predictiveInWords(answer.answered_by)}`],
      ["Review score, which the decision goes by", figure(answer.score)],
      ...(answer.familiarity === null ? [] : [["Calibration rows that are at least as unusual, itself counted in", percent(answer.familiarity, answer.familiarity < 0.1 ? 1 : 0)]]),
      ...(answer.label_mass === null ? [] : [["Probability of the labels among all words", percent(answer.label_mass)]]),
      ["Tokens", `${answer.tokens}${answer.truncated ? ", cut" : ""}`],
      ["Time", `${response.timing_ms.total.toFixed(0)} ms, ${response.timing_ms.compute.toFixed(0)} of them computing`],
    ]),
    others.length === 0 ? null : table("What other ways to answer say", ["Other ways to answer", ...names.slice(0, MOST_LABELS)],
      others.map(([name, probs]) => [name, ...names.slice(0, MOST_LABELS).map((label) => probability(probs[label]))])));
}

// Returns the label set in words; one of hundreds of labels fits no card.
function held({ prediction_set: set, probs }) {
  if (set.length > MOST_LABELS && set.length === Object.keys(probs).length) return "every label";
  return set.length === 0 ? "empty" : listed(set);
}

function side(answer, artifact) {
  const several = answer.labels !== undefined;
  const flags = answer.flags.map((flag) => make("li", {}, make("code", {}, flag), ` ${noteOf(flag)}`));
  return [
    make("dl", { class: "facts" },
      make("div", {}, make("dt", {}, "Label set"),
        make("dd", {}, held(answer),
          make("span", { class: "note sets" }, setsInWords(artifact?.prediction_sets, answer.answered_by, several))))),
    flags.length === 0 ? null : make("ul", { class: "flags" }, flags),
  ];
}

// Returns the nodes of an artifact's answer. `choices` are the texts that were sent with a question, if it was one.
export function drawn(response, choices, artifact) {
  const [answer] = response.predictions;
  const { do: action, why } = verdict(response);
  const parts = [
    make("p", { class: `verdict ${answer.decision}` },
      make("strong", {}, action), " ", make("span", { class: "best" }, best(answer)), " ", make("span", {}, why)),
    ...comparison(answer, answer.answered_by, artifact !== null && (artifact.corrects || isTuned(artifact)) ? answer.map_probs : null, choices),
  ];
  parts.push(...side(answer, artifact), details(answer, response, Object.keys(answer.probs).length));
  return parts.filter((part) => part !== null);
}

// Returns the answer as a screen reader says it.
export function said(response) {
  const [answer] = response.predictions;
  const { do: action, why } = verdict(response);
  return `${action}. ${best(answer)}. ${why}`;
}
