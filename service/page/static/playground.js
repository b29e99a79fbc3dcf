// Ask the artifact one thing, see what to do with the answer, and tell it the true label.

import { inWords, postJson } from "./api.js";
import { drawn, said } from "./answer.js";
import { chosen, named } from "./artifacts.js";
import { asCurl, asPython } from "./calls.js";
import { byId, make } from "./dom.js";
import { examplesFor } from "./examples.js";
import { predictiveInWords } from "./words.js";

const nothing = byId("answer").firstElementChild;
let shownFor = null;
let asked = 0;

function control(name, i, artifact) {
  const id = `field-${i}`;
  const words = name === "choices" ? `Choices, one a line (2 to ${artifact.labels.length})` : name;
  return make("p", {},
    make("label", { for: id }, words),
    make("textarea", { id, name, rows: name === "choices" ? Math.min(artifact.labels.length, 4) : 3, spellcheck: "false" }));
}

function fill(fields) {
  for (const area of byId("fields").querySelectorAll("textarea")) {
    const value = fields[area.name] ?? "";
    area.value = Array.isArray(value) ? value.join("\n") : value;
  }
}

// Draws the form anew where the artifact is another one; what was typed stays otherwise.
export function showPlayground() {
  const artifact = chosen();
  byId("ask-button").disabled = artifact === null;
  const digest = artifact?.digest ?? null;
  if (artifact === null || digest === shownFor) return;
  shownFor = digest;
  // The answer on the page, or under way, is another artifact's.
  asked += 1;
  byId("answer").replaceChildren(nothing);
  byId("answer").removeAttribute("aria-busy");
  byId("calls").hidden = true;
  byId("fields").replaceChildren(...artifact.fields.map((name, i) => control(name, i, artifact)));
  const recommended = artifact.recommended.predictive;
  byId("predictive").replaceChildren(
    make("option", { value: "" }, `recommended (${recommended})`),
    ...artifact.predictives.map((name) => make("option", { value: name }, `${name}: ${predictiveInWords(name)}`)),
  );
  const examples = examplesFor(artifact);
  byId("examples").hidden = examples.length === 0;
  nothing.textContent = `The answer appears here. ${examples.length > 0 ? "Choose an example, or type your own input." : "Type an input."}`;
  byId("example-list").replaceChildren(...examples.map((example) =>
    make("button", {
      type: "button",
      class: "chip",
      onclick: () => {
        fill(example.fields);
        ask();
      },
    }, example.title)));
  if (examples.length > 0) fill(examples[0].fields);
}

function body() {
  const fields = {};
  for (const area of byId("fields").querySelectorAll("textarea")) {
    fields[area.name] =
      area.name === "choices" ? area.value.split("\n").map((line) => line.trim()).filter(Boolean) : area.value;
  }
  const options = {};
  if (byId("risk").value !== "") options.target_risk = Number((byId("risk").valueAsNumber / 100).toPrecision(6));
  if (byId("predictive").value !== "") options.predictive = byId("predictive").value;
  const request = { inputs: [fields] };
  if (named() !== null) request.artifact = named();
  if (Object.keys(options).length > 0) request.options = options;
  return request;
}

async function ask() {
  const mine = ++asked;
  const request = body();
  byId("ask-problem").textContent = "";
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const response = await postJson("predict", { ...request, options: { ...request.options, detail: "full" } });
    // Somebody who asks twice sees the answer to the second question, whichever comes last.
    if (mine !== asked) return;
    byId("answer").replaceChildren(...drawn(response, request.inputs[0].choices, chosen()), truth(response));
    byId("answer-said").textContent = said(response);
    byId("call-curl").textContent = asCurl(request);
    byId("call-python").textContent = asPython(request);
    byId("calls").hidden = false;
  } catch (error) {
    if (mine === asked) byId("ask-problem").textContent = inWords(error);
  } finally {
    if (mine === asked) byId("answer").removeAttribute("aria-busy");
  }
}

// Returns the form by which the true label comes back as feedback; nothing where the server keeps no predictions.
function truth(response) {
  const [answer] = response.predictions;
  if (answer.prediction_id === undefined || answer.labels !== undefined) return "";
  const labels = Object.keys(answer.probs);
  const status = make("span", { role: "status" });
  const choice = make("select", { id: "truth" },
    make("option", { value: "" }, "choose"), labels.map((label) => make("option", { value: label }, label)));
  // Nothing is chosen at first: the model's own answer there would be told back to it unread.
  const button = make("button", { type: "submit", class: "quiet", disabled: true }, "Tell it");
  choice.addEventListener("change", () => {
    button.disabled = choice.value === "";
  });
  const tell = async (event) => {
    event.preventDefault();
    try {
      const items = [{ prediction_id: answer.prediction_id, label: choice.value }];
      const { results } = await postJson("feedback", { items });
      status.textContent = results[0].status === "unknown"
        ? "The server no longer knows this answer."
        : "Thank you: it counts in the section Feedback.";
    } catch (error) {
      status.textContent = inWords(error);
    }
  };
  return make("form", { class: "truth", onsubmit: tell },
    make("label", { for: "truth" }, "Do you know the true label?"), choice,
    button, status);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
