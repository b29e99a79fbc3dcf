// Calls of the API, with the key where there is one, and what went wrong as one kind of error.

const base = new URL("./", document.baseURI);
let key = null;

// "key-needed": a call was refused for want of a key; "gone": the server did not answer; "back": it does again.
export const signals = new EventTarget();

export class Refused extends Error {
  // What the server said no to, or that it could not be reached (code "unreachable").
  constructor(code, message, status = 0, { field, lines, lines_bad: linesBad } = {}) {
    super(message);
    Object.assign(this, { code, status, field: field ?? null, lines: lines ?? [], linesBad: linesBad ?? 0 });
  }
}

export const address = (path) => new URL(path, base);
export const hasKey = () => key !== null;
export function setKey(value) {
  key = value;
}

function headersOf(extra) {
  return key === null ? extra : { ...extra, authorization: `Bearer ${key}` };
}

// Returns the response of a call that the server accepted. `json` is a body to write as JSON, `body` one to send as is.
export async function send(method, path, { json, body, headers = {}, signal } = {}) {
  const sent = json === undefined ? headers : { ...headers, "content-type": "application/json" };
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers: headersOf(sent),
      body: json === undefined ? body : JSON.stringify(json),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    signals.dispatchEvent(new Event("gone"));
    throw new Refused("unreachable", "The server did not answer.");
  }
  signals.dispatchEvent(new Event("answered"));
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // A proxy's own page, or a body that broke off: the status is all there is.
  }
  if (response.status === 401) signals.dispatchEvent(new Event("key-needed"));
  const message = said.message ?? `The server answered with status ${response.status}.`;
  return new Refused(said.code ?? "unknown", message, response.status, said);
}

export async function getJson(path, options) {
  return (await send("GET", path, options)).json();
}

export async function postJson(path, json, options = {}) {
  return (await send("POST", path, { ...options, json })).json();
}

// What a person reads about a failure, whatever failed.
export function inWords(error) {
  if (!(error instanceof Refused)) return `This page failed: ${error.message}`;
  if (error.status === 401) return "An API key is needed.";
  if (error.status === 403) return `This key may not do that: ${error.message}`;
  if (error.field === null || /^inputs\.0\b/.test(error.field)) return error.message.replace(/^input 0: /, "");
  return `${error.message} (${error.field})`;
}
