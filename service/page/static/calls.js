// The call that was just made, as curl and as Python. A key is never part of it.

import { address, hasKey } from "./api.js";

export const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(body, path = "predict") {
  const key = hasKey() ? " \\\n  -H 'authorization: Bearer YOUR_KEY'" : "";
  return `curl -s ${quoted(address(path).href)} -H 'content-type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

// JSON's words are Python's, but for three of them; a text is the same in both.
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, part]) => `${JSON.stringify(name)}: ${python(part)}`).join(", ")}}`;
}

export function asPython({ inputs, artifact, options = {} }) {
  const server = address("").href.replace(/\/$/, "");
  const named = artifact === undefined ? options : { ...options, artifact };
  const more = Object.entries(named).map(([name, value]) => `, ${name}=${python(value)}`).join("");
  return [
    "from laplora.client import Client",
    "",
    `with Client(${JSON.stringify(server)}${hasKey() ? ', api_key="YOUR_KEY"' : ""}) as client:`,
    `    [answer] = client.predict(${python(inputs)}${more})`,
    "    print(answer.label, answer.probs, answer.decision, answer.decision_reason)",
  ].join("\n");
}
