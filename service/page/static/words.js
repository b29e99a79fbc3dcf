// What an answer's flags and decision mean, in plain words.

import { percent } from "./dom.js";

const seen = (familiarity) =>
  familiarity === null
    ? "it is unlike the rows that the model learned from"
    : `it is unlike the rows that the model learned from: of the calibration rows and this one together, ${percent(familiarity)} are as strange, itself included`;

// Why a person should look, by flag. These four send an answer to review by themselves.
const REASONS = {
  unfamiliar: (answer) => seen(answer.familiarity),
  high_epistemic: () => "the models that the training rows leave plausible disagree about it",
  low_label_mass: () => "the model would rather have said something that is none of the labels",
  truncated: () => "the input was longer than the limit and was cut",
};

// What a flag says, whatever the decision.
const NOTES = {
  unfamiliar: "Unlike the training rows; its set holds every label.",
  high_epistemic: "The plausible models disagree more than on 95 % of calibration rows.",
  low_confidence: "Less sure than answers that meet the artifact's own target risk.",
  low_label_mass: "The whole vocabulary gives the labels less than for 99 % of calibration rows.",
  ambiguous_set: "Not exactly one label is left in the set.",
  truncated: "Longer than the limit, and cut.",
};

export const noteOf = (flag) => NOTES[flag] ?? "";

const listed = (parts) =>
  parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")}, and ${parts.at(-1)}`;

// Returns what to do with an answer, and why.
export function verdict(answer, targetRisk) {
  const risk = percent(targetRisk, targetRisk < 0.01 ? 1 : 0);
  if (answer.decision === "accept") {
    return {
      do: "Use it.",
      why: `It is as sure as the calibration rows of which at most ${risk} were wrong.`,
    };
  }
  const reasons = answer.flags.filter((flag) => flag in REASONS).map((flag) => REASONS[flag](answer));
  if (reasons.length > 0) return { do: "A person should look,", why: `because ${listed(reasons)}.` };
  return {
    do: "A person should look,",
    why: `because if everything as sure as this were accepted, more than ${risk} of such calibration rows would have been wrong.`,
  };
}

// Describes the split of the entropy. What more training rows would do, it cannot tell.
export function uncertaintyInWords({ total, aleatoric, epistemic }) {
  if (total < 0.05) return "The served answer has hardly any doubt.";
  return epistemic > aleatoric
    ? "Most of the doubt is disagreement: the plausible models give this input different answers."
    : "Most of the doubt is shared: each of the plausible models is itself unsure of this input.";
}
