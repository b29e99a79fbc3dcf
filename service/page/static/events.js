// Server-sent events by fetch, because an EventSource cannot send a key.

import { send } from "./api.js";

const AGAIN_MS = 1000;
// An event is one job; a server that sends more without an end is not followed further.
const MOST_CHARACTERS = 1 << 20;

// Returns the complete events of a text, and the rest that is not complete yet.
export function split(text) {
  const blocks = text.replaceAll("\r\n", "\n").split("\n\n");
  const rest = blocks.pop();
  const events = [];
  for (const block of blocks) {
    const event = { id: null, data: [] };
    for (const line of block.split("\n")) {
      const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "id") event.id = value;
      if (name === "data") event.data.push(value);
    }
    if (event.data.length > 0) events.push({ id: event.id, data: event.data.join("\n") });
  }
  return { events, rest };
}

// Calls `onEvent(data)` for each event until it returns true or `signal` aborts; goes on after a break where it left off.
export async function follow(path, onEvent, signal) {
  let last = null;
  for (;;) {
    try {
      const headers = last === null ? {} : { "last-event-id": last };
      const response = await send("GET", path, { headers, signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const { events, rest } = split(text + value);
        if (rest.length > MOST_CHARACTERS) throw new Error("an event without an end");
        text = rest;
        for (const event of events) {
          last = event.id ?? last;
          if (onEvent(JSON.parse(event.data))) {
            await reader.cancel();
            return;
          }
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      // What is refused stays refused; a connection that broke is tried again.
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await new Promise((done) => setTimeout(done, AGAIN_MS));
    if (signal.aborted) return;
  }
}
