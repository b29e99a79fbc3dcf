"""results.json, RESULTS.md and its plot; figures of other numbers of layers that are published already stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pruning.measure import COUNTS, METHODS, Record
from laplora.files import write_whole
from laplora.report.names import display_name
from training.report.markdown import markdown_table
from training.report.pictures import save_picture

FOLDER = Path(__file__).parent
PAGE, RESULTS, PLOT = FOLDER / "RESULTS.md", FOLDER / "results.json", FOLDER / "pruning.png"

_TITLE = "# Fewer layers: what they cost and what they save"
_HOW = (
    "Written by `python -m benchmarks.pruning --publish` from results.json. SmolLM2-135M-Instruct has 30 layers. N of "
    "them are removed before fine-tuning ([how they are chosen](../../docs/training.md#fewer-layers)), on SST-2: 300 "
    "rows train, 150 calibrate, {rows} test; NF4, LoRA on `q_proj`, `v_proj` and `lm_head`, 300 steps at 3e-4.",
    "**How to read it.** Each N is *one* training with one seed. The brackets are 95 % intervals over the test rows "
    "alone: another seed moves every figure again. The test rows are the same for every N, and nothing was chosen on "
    "them: no N is recommended here. Two rows of the table whose intervals overlap widely are not told apart.",
)
_LABELS = {"accuracy": "accuracy", "nll": "NLL, nats", "ece": "ECE"}


def publish(out: Path) -> None:
    """Put the figures of a folder of runs in their place among the committed ones, and write all three files."""
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("[0-9]*.json"))]
    records = {record["count"]: record for record in [*committed()["records"], *measured]}
    path = out / "times.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else committed()["times"]
    content = {"records": [records[count] for count in sorted(records)], "times": times}
    write_whole(RESULTS, json.dumps(content, indent=1) + "\n")
    write_whole(PAGE, render(content))
    save_picture(figure(content), PLOT)


def committed() -> Record:
    """Return what results.json holds; nothing where there is none."""
    if not RESULTS.is_file():
        return {"records": [], "times": {}}
    content: Record = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def render(content: Record) -> str:
    """Return the page."""
    records = content["records"]
    first = records[0]
    parts = [_TITLE, *(text.format(rows=first["rows"]) for text in _HOW), *_missing(records)]
    parts += [f"![by layers removed]({PLOT.name})"]
    parts += ["## What it saves", _savings_note(content), _savings(content)]
    for score, label in _LABELS.items():
        parts += [f"## {label[0].upper()}{label[1:]}", _scores(records, score)]
    parts += ["## Where the figures come from", _sources(content)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _missing(records: Sequence[Record]) -> list[str]:
    """Return a sentence on the planned numbers of layers that have not run; none where all have."""
    planned = [str(count) for count in COUNTS if count not in {record["count"] for record in records}]
    return [f"**Not run yet**, and planned: without {', '.join(planned)} layers."] if planned else []


def figure(content: Record) -> Figure:
    """Return a panel for each score, a line for each method, and one for time and memory, by layers removed."""
    records = content["records"]
    counts = [record["count"] for record in records]
    made = Figure(figsize=(11, 7), layout="constrained")
    panels = made.subplots(2, 2)
    for panel, (score, label) in zip(panels.flat, _LABELS.items(), strict=False):
        for place, method in enumerate(METHODS):
            of = [record["methods"][method][score] for record in records]
            values = [one["value"] for one in of]
            errors = [[one["value"] - one["low"] for one in of], [one["high"] - one["value"] for one in of]]
            beside = [count + 0.25 * (place - 1) for count in counts]  # so that no interval hides another
            panel.errorbar(beside, values, yerr=errors, fmt="o-", capsize=3, markersize=4, label=display_name(method))
        _finish(panel, label, counts)
        panel.legend(fontsize=8)
    _draw_savings(panels[1, 1], content)
    return made


def _draw_savings(panel: Axes, content: Record) -> None:
    records, relative = content["records"], content["times"]["relative"]
    counts = [record["count"] for record in records]
    whole = records[0]["bytes"]
    for name, label in (("packed", "bytes of the base, 4 bit"), ("expanded", "bytes of the base, expanded")):
        shares = [100 * record["bytes"][name] / whole[name] for record in records]
        panel.plot(counts, shares, "s--", markersize=4, label=label)
    timed = [count for count in counts if str(count) in relative]
    of = [relative[str(count)] for count in timed]
    panel.plot(timed, [100 * one["median"] for one in of], "o-", color="black", markersize=4, label="time of an answer")
    _finish(panel, "% of the base with all layers", counts)
    panel.set_ylim(0, 105)
    panel.legend(fontsize=8)


def _finish(panel: Axes, label: str, counts: Sequence[int]) -> None:
    panel.set_ylabel(label)
    panel.set_xlabel("layers removed of 30")
    panel.set_xticks(counts)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _scores(records: Sequence[Record], score: str) -> str:
    rows = [[record["count"], *(_interval(record["methods"][m][score]) for m in METHODS)] for record in records]
    return markdown_table(["layers removed", *map(display_name, METHODS)], rows)


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _savings_note(content: Record) -> str:
    return (
        "Bytes are those of the base's weights, embeddings included, which no layer holds: packed as NF4, and "
        "expanded to bfloat16 as on a CPU. An answer is one MAP prediction of a short prompt, the processor's time on "
        f"one thread: the median of {content['times']['turns']} turns in which every artifact answers once, and in "
        "brackets the fastest and the slowest. The machine was busy with other work, which makes milliseconds larger "
        "than on a quiet one; the last column is each turn's time over that of the base with all layers. The angle is "
        "the mean turn of the state at the last token over the removed layers, as a share of a half turn."
    )


def _savings(content: Record) -> str:
    times = content["times"]["times"]
    rows = []
    for record in content["records"]:
        removed, distance = record["removed"], record["distance"]
        time, relative = times.get(str(record["count"])), content["times"]["relative"].get(str(record["count"]))
        rows.append(
            [
                record["count"],
                f"{removed[0]} to {removed[-1]}" if removed else "none",
                "-" if distance is None else f"{distance:.3f}",
                *(f"{record['bytes'][name] / 1e6:.0f}" for name in ("packed", "expanded")),
                f"{time['median']:.0f} [{time['low']:.0f}, {time['high']:.0f}]" if time else "-",
                f"{relative['median']:.2f} [{relative['low']:.2f}, {relative['high']:.2f}]" if relative else "-",
            ]
        )
    heading = [
        "layers removed",
        "which, from 0",
        "angle",
        "4 bit, MB",
        "expanded, MB",
        "an answer, ms",
        "of all layers'",
    ]
    return markdown_table(heading, rows)


def _sources(content: Record) -> str:
    rows = [[r["count"], r["date"], f"`{r['commit']}`", r["versions"]] for r in content["records"]]
    note = f"Times: {content['times']['date']}, {content['times']['hardware']}."
    return f"{note}\n\n{markdown_table(['layers removed', 'date', 'commit', 'versions'], rows, left=(0, 1, 2, 3))}"
