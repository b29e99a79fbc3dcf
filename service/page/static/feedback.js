// Calibration in production: figures of labelled answers beside their limits, and drift of all answers.

import { getJson, inWords } from "./api.js";
import { gauge } from "./charts.js";
import { byId, counted, figure, make, percent, table } from "./dom.js";
import { showShadow } from "./shadow.js";

// Name, heading, which side of the limit is worse, and the end of the scale where the figure has a natural one.
const FIGURES = [
  ["accuracy", "Accuracy", "low", 1],
  ["nll", "NLL, nats", "high", null],
  ["ece", "Calibration error (ECE)", "high", null],
  ["coverage", "Coverage of the sets", "low", 1],
  ["accepted_risk", "Errors among accepted", "high", null],
  ["map_gain", "Gain over the model alone, nats", "low", null],
];
const REFERENCES = {
  calibration: "the calibration rows",
  activation: "the first answers",
};
// As docker/monitoring/calibration-alerts.yaml has them.
const DRIFT_GAP = 0.1;
const DRIFT_P_VALUE = 0.001;

function figureRow([name, head, worse, end], figures) {
  const { value, limit, reference } = figures[name];
  const bad = limit !== null && (worse === "high" ? value > limit : value < limit);
  const high = end ?? 1.15 * Math.max(value, limit ?? 0, reference ?? 0, 0.05);
  const low = Math.min(0, 1.15 * Math.min(value, limit ?? 0));
  const verdict = limit === null ? "" : bad ? "beyond its limit" : "within its limit";
  return [
    head,
    figure(value),
    figure(reference),
    figure(limit),
    make("span", { class: "with-gauge" },
      gauge({ value, limit, reference, low, high, bad, words: `${head}: ${figure(value)}, ${verdict || "without a limit"}` }),
      make("span", { class: bad ? "bad" : "note" }, verdict)),
  ];
}

function driftRow({ signal, reference, gap, p_value: p, reference_rows: before, recent_rows: recent }) {
  const bad = gap > DRIFT_GAP && p < DRIFT_P_VALUE;
  const words = bad ? "has changed" : "no change seen";
  return [
    `${signal}, against ${REFERENCES[reference] ?? reference}`,
    figure(gap, 2),
    p < 0.001 ? p.toExponential(0) : figure(p, 3),
    `${recent} / ${before}`,
    make("span", { class: "with-gauge" },
      gauge({ value: gap, limit: DRIFT_GAP, reference: null, high: 1, bad, words: `Gap ${figure(gap, 2)}: ${words}` }),
      make("span", { class: bad ? "bad" : "note" }, words)),
  ];
}

function drawn(series) {
  const title = `${series.artifact}, answered by ${series.predictive}`;
  const parts = [
    make("h2", {}, title),
    make("p", { class: "note" },
      `${counted(series.predictions, "answer")}, ${series.labelled} of the last ones with a label` +
        (series.accepted_share === null ? "" : `; ${percent(series.accepted_share, 0)} of the recent ones accepted`) + "."),
  ];
  if (series.figures === null) {
    parts.push(make("p", { class: "empty" }, "No labels yet. Tell one in the playground, or by POST /feedback."));
  } else {
    parts.push(
      make("p", { class: "legend" }, make("span", { class: "key served" }), "measured ", make("span", { class: "key line reference" }), "compared with ", make("span", { class: "key line limit" }), "limit: beyond it, more than chance"),
      table(`Figures of labelled answers: ${title}`, ["Figure", "Measured", "Compared with", "Limit", "Picture"],
        FIGURES.filter(([name]) => series.figures[name].value !== null).map((one) => figureRow(one, series.figures)), { stacks: true }));
    const flags = Object.entries(series.flags);
    if (flags.length > 0) {
      parts.push(make("h3", {}, "Errors by flag"), table(`Errors by flag: ${title}`, ["Flag", "Labelled answers", "Wrong"],
        flags.map(([flag, { rows, error_rate: wrong }]) => [make("code", {}, flag), rows, percent(wrong, 0)])));
    }
  }
  parts.push(
    make("h3", {}, "Drift: are recent answers still like the calibration rows?"),
    make("p", { class: "note" }, `Gap: how far the two distributions are apart, 0 not at all, 1 wholly. It has changed where the gap is above ${DRIFT_GAP} and chance alone would make one as large in fewer than 1 of ${1 / DRIFT_P_VALUE} cases (p-value).`));
  parts.push(series.drift.length === 0
    ? make("p", { class: "empty" }, "Too few answers to compare yet.")
    : table(`Drift: ${title}`, ["Signal", "Gap", "p-value", "Rows: recent / reference", "Picture"], series.drift.map(driftRow), { stacks: true }));
  return make("article", { class: "panel series" }, parts);
}

export async function showFeedback() {
  byId("feedback-problem").textContent = "";
  try {
    const { series, window: most, kept } = await getJson("feedback");
    byId("feedback-said").textContent = series.length === 0
      ? "Nothing was asked yet. Ask something in the playground."
      : `${counted(kept, "answer")} kept; figures are of the last ${most} with a label.`;
    byId("feedback-series").replaceChildren(...series.map(drawn));
    await showShadow();
  } catch (error) {
    byId("feedback-series").replaceChildren();
    byId("feedback-said").textContent = "";
    byId("feedback-problem").textContent = inWords(error);
  }
}

byId("feedback-refresh").addEventListener("click", showFeedback);
