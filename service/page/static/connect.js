// Other ways to ask: the command line, Python, and clients of decision models, each as code for this server.

import { address, hasKey } from "./api.js";
import { chosen, named } from "./artifacts.js";
import { asCurl, asPython, quoted } from "./calls.js";
import { byId } from "./dom.js";
import { examplesFor } from "./examples.js";

// Returns the fields of an input to show: an example's, or a word for each field.
function shownInput(artifact) {
  const [example] = examplesFor(artifact);
  if (example !== undefined) return example.fields;
  return Object.fromEntries(artifact.fields.map((name) => [name, name === "choices" ? ["one", "another"] : `the ${name}`]));
}

function commandLine(artifact) {
  const server = address("").href.replace(/\/$/, "");
  const input = shownInput(artifact);
  const row = (fields) => quoted(JSON.stringify({ ...fields, label: artifact.labels[0] }));
  // Without a server nobody asks the model that is corrected.
  const even = Number((1 / artifact.labels.length).toFixed(4));
  const whole = artifact.corrects ? { ...input, model_probs: Object.fromEntries(artifact.labels.map((label) => [label, even])) } : input;
  return [
    `echo ${row(input)} > rows.jsonl`,
    "# on this server, in the background; then every row's answer, and the report",
    `${hasKey() ? "export LAPLORA_API_KEY=YOUR_KEY\n" : ""}export LAPLORA_URL=${quoted(server)}`,
    "laplora jobs submit rows.jsonl --wait",
    "laplora jobs list",
    `# without a server; FOLDER is the artifact's${artifact.corrects ? `, model_probs what ${artifact.corrects} said` : ""}`,
    `echo ${quoted(JSON.stringify(whole))} | laplora predict -a FOLDER`,
    ...(artifact.corrects ? [`echo ${row(whole)} > rows.jsonl`] : []),
    "laplora evaluate -a FOLDER --data rows.jsonl --fail-if 'accuracy<0.8'",
    "laplora report -a FOLDER --data rows.jsonl --out report.html",
  ].join("\n");
}

// Returns a request of the artifact's own question, as clients of decision models send it.
function asked(artifact, { choices, ...fields }) {
  const texts = Object.values(fields);
  const state = texts.length === 1 ? texts[0] : fields;
  const { type, instructions, criteria } = artifact.question;
  const options = criteria ?? Object.fromEntries(choices.map((choice) => [choice, null]));
  return { model: artifact.name, state, questions: { mine: { type, instructions, criteria: options } } };
}

export function showConnect() {
  const artifact = chosen();
  byId("connect-ways").hidden = artifact === null;
  byId("connect-empty").hidden = artifact !== null;
  if (artifact === null) return;
  const fields = shownInput(artifact);
  byId("connect-command").textContent = commandLine(artifact);
  const request = { inputs: [fields], ...(named() === null ? {} : { artifact: named() }) };
  byId("connect-client").textContent = asPython(request);
  const decides = Boolean(artifact.question);
  byId("connect-systemone").textContent = decides ? asCurl(asked(artifact, fields), "v1/systemone") : "";
  byId("connect-decides").hidden = !decides;
}
