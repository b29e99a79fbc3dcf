// One job of the list: how far it is, what became of it, and what can be done with it.

import { getJson, inWords, postJson, send } from "./api.js";
import { byId, counted, elsewhere, figure, make, percent, save, table } from "./dom.js";

export const ended = (job) => ["done", "failed", "cancelled"].includes(job.status);

const WORDS = {
  queued: "waits for its turn",
  running: "is running",
  paused: "waits",
  done: "is done",
  failed: "failed",
  cancelled: "is cancelled",
};

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${figure(seconds / 3600, 1)} h`;
}

function detail(job) {
  if (job.error !== null) return job.error.message;
  if (job.paused !== null) return job.paused.message;
  const parts = [];
  if (job.seconds_left !== null) parts.push(`about ${duration(job.seconds_left)} left`);
  if (job.rows_per_second !== null) parts.push(`${figure(job.rows_per_second, 1)} rows a second`);
  if (job.rows_bad > 0) parts.push(`${job.rows_bad} rows had no answer`);
  const { rows, decisions, unfamiliar } = job.answered ?? { rows: 0 };
  if (rows > 0) parts.push(`${percent(decisions.accept / rows)} accepted`);
  if (rows > 0 && unfamiliar !== null) parts.push(`${percent(unfamiliar)} unfamiliar`);
  return parts.join(", ");
}

function partial(job) {
  const [name, metrics] = Object.entries(job.partial ?? {}).find(([name]) => name !== "map") ?? [];
  return name === undefined ? "" : `So far by ${name}: accuracy ${percent(metrics.accuracy)}, NLL ${figure(metrics.nll)}, ECE ${figure(metrics.ece)}.`;
}

function resultTable(job) {
  const within = ({ intervals: { nll } }) => (nll ? ` (${figure(nll[0])} to ${figure(nll[1])})` : "");
  const rows = Object.entries(job.result.methods).map(([name, metrics]) => [
    name,
    percent(metrics.accuracy),
    `${figure(metrics.nll)}${within(metrics)}`,
    figure(metrics.ece),
    figure(metrics.auroc_error),
  ]);
  return table(`Metrics of ${counted(job.result.rows, "row")} with a label, the NLL with its 95 % interval`, ["Way to answer", "Accuracy", "NLL, nats", "ECE", "AUROC of errors"], rows);
}

export class JobCard {
  // `onGone(id)` is called once the server has removed the job.
  constructor(job, onGone) {
    this.job = job;
    this.onGone = onGone;
    this.path = `evaluate/jobs/${encodeURIComponent(job.id)}`;
    this.what = make("p", { class: "what" });
    this.progress = make("progress", { max: job.rows, "aria-label": "Rows done" });
    this.note = make("p", { class: "note" });
    this.problem = make("p", { class: "problem", role: "alert" });
    this.result = make("div", {});
    const rows = `job-${job.id}.jsonl`;
    this.rows = make("a", { href: `${this.path}/results`, download: rows, "data-fetched": rows }, "Every answer");
    const report = { ...elsewhere, href: `${this.path}/report`, "data-fetched": `job-${job.id}-report.html` };
    this.report = make("a", report, "Report");
    this.cancel = this.button("Cancel", () => this.change(() => postJson(`${this.path}/cancel`)));
    this.open = this.button("Show the result", () => this.showResult());
    this.download = this.button("Download the result", () => this.saveResult());
    this.remove = this.button("Remove", () => this.removeJob());
    this.node = make("li", { class: "panel job", "data-job": job.id },
      this.what, this.progress, this.note, this.problem,
      make("p", { class: "actions" }, this.cancel, this.open, this.report, this.download, this.rows, this.remove),
      this.result);
    this.update(job);
  }

  button(words, act) {
    const run = async () => {
      this.problem.textContent = "";
      try {
        await act();
      } catch (error) {
        this.problem.textContent = inWords(error);
      }
    };
    const about = ` the job of ${this.job.created_at.slice(0, 19).replace("T", " ")}`;
    return make("button", { type: "button", class: "quiet", onclick: run }, words, make("span", { class: "unseen" }, about));
  }

  update(job) {
    if (job.status !== this.job.status && ended(job)) byId("job-said").textContent = `The job ${WORDS[job.status]}.`;
    this.job = job;
    this.node.dataset.status = job.status;
    const when = new Date(job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    this.what.replaceChildren(
      make("strong", {}, `${job.rows_done} of ${job.rows} rows`), ` · ${WORDS[job.status] ?? job.status}`,
      make("span", { class: "note" }, ` · ${job.artifact.name} · ${when} · ${job.owner}`));
    this.progress.value = job.rows_done;
    this.progress.hidden = ended(job);
    this.note.textContent = [detail(job), ended(job) ? "" : partial(job)].filter(Boolean).join(". ");
    this.cancel.hidden = ended(job);
    this.remove.hidden = !ended(job);
    const measured = job.status === "done" && job.rows_labelled > 0;
    this.open.hidden = !measured;
    this.download.hidden = job.status !== "done";
    const kept = job.keep_rows && job.rows_done > 0 && job.status !== "cancelled";
    this.rows.hidden = !kept;
    this.report.hidden = !kept || !measured;
  }

  async change(call) {
    this.update(await call());
  }

  async whole() {
    return getJson(this.path);
  }

  async showResult() {
    const job = await this.whole();
    this.result.replaceChildren(resultTable(job));
  }

  async saveResult() {
    const job = await this.whole();
    save(new Blob([JSON.stringify(job, null, 1)], { type: "application/json" }), `job-${job.id}.json`);
  }

  async removeJob() {
    await send("DELETE", this.path);
    this.onGone(this.job.id);
  }
}
