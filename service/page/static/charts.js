// Small charts, drawn as SVG. A chart stands beside its numbers, so it is hidden from screen readers, or named.

import { draw } from "./dom.js";

const at = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(2)}%`;

// Returns a bar of a share; with `limit`, its mark.
export function bar(kind, share, limit = null) {
  const parts = [
    draw("rect", { class: "track", width: "100%", height: "100%", rx: 2 }),
    draw("rect", { class: kind, width: at(share), height: "100%", rx: 2 }),
  ];
  if (limit !== null) parts.push(draw("line", { class: "limit", x1: at(limit), x2: at(limit), y1: "0", y2: "100%" }));
  return draw("svg", { class: "bar", "aria-hidden": "true" }, parts);
}

// Returns a bar of parts of a whole, each `[kind, share]`.
export function stacked(parts) {
  let before = 0;
  const drawn = parts.map(([kind, share]) => {
    const rect = draw("rect", { class: kind, x: at(before), width: at(share), height: "100%" });
    before += share;
    return rect;
  });
  return draw("svg", { class: "bar thin", "aria-hidden": "true" },
    draw("rect", { class: "track", width: "100%", height: "100%" }), drawn);
}

// Returns a value beside its limit and its reference on a scale from `low` to `high`; `words` is what it shows.
export function gauge({ value, limit, reference, low = 0, high, bad, words }) {
  const place = (x) => at((x - low) / (high - low));
  const mark = (x, kind) =>
    x === null ? null : draw("line", { class: kind, x1: place(x), x2: place(x), y1: "0", y2: "100%" });
  const zero = Math.min(Math.max((0 - low) / (high - low), 0), 1);
  const end = Math.min(Math.max((value - low) / (high - low), 0), 1);
  return draw("svg", { class: "gauge", role: "img", "aria-label": words },
    draw("rect", { class: "track", width: "100%", height: "60%", y: "20%", rx: 2 }),
    draw("rect", {
      class: bad ? "map" : "served",
      x: at(Math.min(zero, end)),
      width: at(Math.abs(end - zero)),
      height: "60%",
      y: "20%",
      rx: 2,
    }),
    [mark(reference, "reference"), mark(limit, "limit")].filter(Boolean));
}
