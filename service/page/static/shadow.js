// A candidate in the shadow: what it answered to the rows that the active artifact answered, and whether it is better.

import { getJson } from "./api.js";
import { byId, counted, figure, make, percent, table } from "./dom.js";

const NAMES = { accepted_share: "Accepted share", accuracy: "Accuracy", nll: "Loss (NLL), nats" };
const VERDICTS = {
  not_asked: "It is compared alone: nothing was stated that activates it.",
  waiting: "It is activated once it is better for certain in what was asked for; not yet.",
  better: "It is better for certain in what was asked for, and is activated.",
  undecided: "The labels that are kept did not tell the two apart.",
};
const share = (value, digits = 1) => (typeof value === "number" ? percent(value, digits) : "–");

function drawn(shadow) {
  const { active: mine, shadow: its } = shadow.figures;
  const accepted = shadow.accepted_share;
  const title = `${shadow.artifact.name}, beside ${shadow.active.name}`;
  const asked = shadow.activate_if_better;
  return make("article", { class: "panel series" },
    make("h2", {}, `In the shadow: ${title}`),
    make("p", { class: "note" },
      `${counted(shadow.rows, "row")} of this server answered by both, ${shadow.labelled} with a label; ${shadow.missed} missed. Clients get nothing of it.`),
    make("p", {}, VERDICTS[shadow.verdict] ?? shadow.verdict, " ", make("span", { class: "note" }, asked.length > 0 ? `${shadow.reason}.` : "")),
    table(`Both answers: ${title}`, ["Figure", shadow.active.name, shadow.artifact.name], [
      ["Accepted, of all rows", share(accepted.active), share(accepted.shadow)],
      ["Right, of the labelled, unweighted", share(mine.accuracy), share(its.accuracy)],
      ["Wrong, of the labelled and accepted", share(mine.accepted_risk), share(its.accepted_risk)],
      ["Loss (NLL), nats", figure(mine.nll), figure(its.nll)],
    ], { stacks: true }),
    table(`How much better the candidate is: ${title}`, ["Gain of the candidate", "Measured", `At least, ${100 * shadow.confidence} % certain`, "Asked for"],
      shadow.differences.map((one) => [NAMES[one.figure] ?? one.figure, figure(one.value),
        figure(one.low), asked.includes(one.figure) ? "yes" : "no"]), { stacks: true }),
    make("h3", {}, `Same label: ${share(shadow.agreement)} of the rows`),
    shadow.pairs.length === 0 ? null : table(`Labels that differ: ${title}`, [shadow.active.name, shadow.artifact.name, "Rows"],
      shadow.pairs.map(({ active, shadow: other, rows }) => [active, other, rows])));
}

export async function showShadow() {
  const { shadow } = await getJson("shadow");
  byId("feedback-shadow").replaceChildren(...(shadow === null ? [] : [drawn(shadow)]));
}
