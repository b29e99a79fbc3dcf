// What an answer's flags, decision and set mean, in plain words, and what the ways to answer are.

import { byId, percent } from "./dom.js";

// What a flag says, whatever the decision.
const NOTES = {
  unfamiliar: "Unlike the training rows; its set holds every label.",
  high_epistemic: "Plausible models disagree more than on 95 % of calibration rows.",
  low_confidence: "Not as sure as this share of mistakes asks for.",
  low_label_mass: "Words that are no labels were likelier than for 99 % of calibration rows.",
  ambiguous_set: "Other labels are still possible.",
  truncated: "Longer than the limit, and cut.",
};

export const noteOf = (flag) => NOTES[flag] ?? "";

// Returns what to do with the answer in a response, and why.
export function verdict({ predictions: [answer], nothing_accepted: nothing }) {
  const why = answer.decision_reason;
  const from = nothing?.accepts_from;
  const rest = typeof from === "number" ? ` From ${percent(from)} on some are accepted.` : "";
  return {
    do: answer.decision === "accept" ? "Accept" : "Send to a person",
    // A percent sign stays beside its number.
    why: `${why[0].toUpperCase()}${why.slice(1)}.${rest}`.replaceAll(" %", "\u00a0%"),
  };
}

// Describes the split of the entropy. What more training rows would do, it cannot tell.
export function uncertaintyInWords({ total, aleatoric, epistemic }) {
  if (total < 0.05) return "The served answer has hardly any doubt.";
  return epistemic > aleatoric
    ? "Most of the doubt is disagreement: models that fit the training rows about as well give this input different answers."
    : "Most of the doubt is shared: each of these models is itself unsure of this input.";
}

// What each predictive is, as laplora/report/names.py has it.
const PREDICTIVES = JSON.parse(byId("predictive-words").textContent);

// Returns whether an artifact's model was fine-tuned; where it was not, its own answer is the base's guess.
export const isTuned = ({ predictives }) => predictives.some((name) => name === "temperature" || name === "laplace");

// Returns what a way to answer is.
export function predictiveInWords(name) {
  if (name in PREDICTIVES) return PREDICTIVES[name];
  return name.startsWith("laplace_") ? "laplace with another prior" : "";
}

// Returns how often sets of labels hold the true one: what was asked for, and what test rows have shown.
export function setsInWords(sets, predictive, several = false) {
  if (!sets) return "";
  const measured = sets.measured[predictive];
  const stated = `Holds ${several ? "a right label" : "the true label"} of ${percent(sets.nominal_coverage, 0)} of inputs (stated)`;
  return measured === undefined ? `${stated}.` : `${stated}; of ${percent(measured.empirical_coverage)} of ${measured.rows} test rows (measured).`;
}
