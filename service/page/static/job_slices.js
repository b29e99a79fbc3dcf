// Figures of a job's rows by the values of one column of its upload.

import { getJson, inWords } from "./api.js";
import { figure, make, percent, table } from "./dom.js";

const share = (value) => (value === null ? "–" : percent(value, 0));

function sliceTable({ column, slices, others }) {
  const all = others === null ? slices : [...slices, { ...others, value: "all others" }];
  const name = Object.keys(all.find((one) => one.methods !== null)?.methods ?? {}).find((one) => one !== "map") ?? "map";
  const rows = all.map(({ value, rows: count, methods, review, unfamiliar }) => {
    const metrics = methods?.[name];
    return [
      value === null ? "none" : typeof value === "string" ? value : JSON.stringify(value),
      count,
      metrics ? percent(metrics.accuracy) : "–",
      metrics ? figure(metrics.nll) : "–",
      metrics ? figure(metrics.ece) : "–",
      share(review),
      share(unfamiliar),
    ];
  });
  return [
    make("p", { class: "note" }, `Figures of ${name}. Those of few rows are noisy.`),
    table(`Figures by ${column}`, [column, "Rows", "Accuracy", "NLL, nats", "ECE", "To review", "Unfamiliar"], rows),
  ];
}

export class SlicesForm {
  constructor(path, job) {
    const id = `slices-${job.id}`;
    this.path = path;
    this.choice = make("select", { id });
    this.problem = make("span", { class: "problem", role: "alert" });
    this.found = make("div", {});
    this.node = make("details", { ontoggle: () => this.node.open && this.offer() },
      make("summary", {}, "Figures by a column of the file"),
      make("form", { class: "actions", onsubmit: (event) => this.show(event) },
        make("label", { for: id }, "Column"), this.choice,
        make("button", { type: "submit", class: "quiet" }, "Show"), this.problem),
      this.found);
  }

  // A list of jobs names no columns: they are asked for when somebody wants one.
  async offer() {
    if (this.choice.length > 0) return;
    this.problem.textContent = "";
    try {
      const { columns } = await getJson(this.path);
      this.choice.replaceChildren(...columns.map((name) => make("option", { value: name }, name)));
      // A text is a value of its own in each row, so it is no column to begin with.
      if (columns.includes("label")) this.choice.value = "label";
    } catch (error) {
      this.problem.textContent = inWords(error);
    }
  }

  async show(event) {
    event.preventDefault();
    this.problem.textContent = "";
    try {
      const query = new URLSearchParams({ by: this.choice.value });
      this.found.replaceChildren(...sliceTable(await getJson(`${this.path}/slices?${query}`)));
    } catch (error) {
      this.problem.textContent = inWords(error);
    }
  }
}
