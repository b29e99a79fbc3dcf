// Elements, and texts in them. What comes from the server is put in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Returns an element; children are nodes, or texts, which stay texts.
export const make = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

// Of a link that leaves this page: in a tab of its own, so that a key and what was typed stay here.
export const elsewhere = { target: "_blank", rel: "noopener" };

// Returns a table with a caption for screen readers; the first cell of a row is its heading. One that `stacks` has, on a
// narrow screen, a line for each cell; its roles are said because that takes them from a table's parts.
export function table(caption, heads, rows, { highlighted = () => false, stacks = false } = {}) {
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    make("table", { role: "table", class: stacks ? "stacks" : null },
      make("caption", { class: "unseen" }, caption),
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
        heads.map((head) => make("th", { role: "columnheader", scope: "col" }, head)))),
      make("tbody", { role: "rowgroup" }, rows.map((row, i) =>
        make("tr", { role: "row", class: highlighted(i) ? "chosen" : null }, row.map((cell, j) =>
          j === 0
            ? make("th", { role: "rowheader", scope: "row" }, cell)
            : make("td", { role: "cell", "data-head": heads[j] }, cell)))))));
}

// Returns a list of names and what they have.
export const facts = (pairs) =>
  make("dl", { class: "facts" }, pairs.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));

export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
export const figure = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : "–");

export function bytes(value) {
  if (value < 1e3) return `${value} bytes`;
  if (value < 1e6) return `${(value / 1e3).toFixed(0)} kB`;
  return value < 1e9 ? `${(value / 1e6).toFixed(1)} MB` : `${(value / 1e9).toFixed(2)} GB`;
}

// Returns names in one line, of many the first dozen.
export const listed = (names) => (names.length > 12 ? `${names.slice(0, 12).join(", ")} and ${names.length - 12} more` : names.join(", "));
export const counted = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

// Saves bytes that this page already holds as a file.
export function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
