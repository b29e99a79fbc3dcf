"""results.json, RESULTS.md and its plot; figures of other trainings that are published already stay."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.evidence.plan import STYLES
from benchmarks.later.measure import METHODS, REFERENCE, Record
from laplora.files import write_whole
from training.report.markdown import markdown_table
from training.report.pictures import save_picture

FOLDER = Path(__file__).parent
PAGE, RESULTS, PLOT = FOLDER / "RESULTS.md", FOLDER / "results.json", FOLDER / "later.png"

_TITLE = "# Labels that come later: condition on them, or train again?"
_HOW = (
    "Written by `python -m benchmarks.later --publish` from results.json. An adapter was trained on 300 rows, and 150 "
    "calibrate it. Then more labels come. All methods have the same labels and the same 500 test rows:",
    "- **temperature scaling**: the adapter stays, its temperature is of all labels that it has not learned.\n"
    "- **conditioned**: these labels correct its answers (`python -m training condition --calibration ...`).\n"
    "- **trained anew**: the later labels are training rows too. The temperature is of the 150.\n"
    "- **trained anew, conditioned**: the 150 correct that adapter.",
    "*Early* adapters are those after 3 of 8 epochs, *long* ones after all 8. Rows, tasks and training are those of "
    "the [evidence study](../evidence/RESULTS.md), whose reporting half has trec: nothing was chosen on it. Figures "
    "are means over the trainings that have run, and one training's differences say little of another's.",
)
_OF_DIFFERENCES = (
    "The first table has each method's NLL less that of the adapter trained anew, on the same test rows: below 0 it "
    "is better. In brackets is its 95 % interval over test rows where one training has run, and **bold** excludes 0; "
    "of several trainings it is the smallest and the largest difference. In brackets after an ECE is what a calibrated "
    "model would measure on the same confidences: most of an ECE is the noise of 500 rows."
)
_BEYOND = "NLL less that of trained anew"


def publish(measured: Iterable[Sequence[Record]]) -> None:
    """Put figures in their place among the committed ones, and write all three files."""
    records = {_key(record): record for record in committed()}
    records |= {_key(record): record for one in measured for record in one}
    every = [records[key] for key in sorted(records)]
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in every)
    write_whole(RESULTS, f"[\n{lines}\n]\n")
    write_whole(PAGE, render(every))
    save_picture(figure(every), PLOT)


def committed() -> list[Record]:
    """Return what was published before."""
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.is_file() else []


def render(records: Sequence[Record]) -> str:
    """Return the page."""
    how = [*_HOW, _OF_DIFFERENCES] if any(map(_is_compared, records)) else _HOW
    parts = [_TITLE, *("\n".join(textwrap.fill(line, 118) for line in text.split("\n")) for text in how)]
    parts.append("![NLL by number of later labels](later.png)")
    for task, style in _places(records):
        of = [record for record in records if (record["task"], record["style"]) == (task, style)]
        seeds = len({record["seed"] for record in of})
        parts.append(f"## {task}, {style} ({seeds} training{'s' if seeds > 1 else ''})")
        counts = sorted({record["labels"] for record in of})
        tables = _TABLES if any(map(_is_compared, of)) else {t: cell for t, cell in _TABLES.items() if t != _BEYOND}
        for title, cell in tables.items():
            rows = [
                [METHODS[method], *(cell(_of(of, method, count)) for count in counts)]
                for method in METHODS
                if title != _BEYOND or method != REFERENCE
            ]
            parts.append(markdown_table([f"{title}; later labels", *map(str, counts)], rows))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def figure(records: Sequence[Record]) -> Figure:
    """Return a panel for each task and style: NLL by later labels, a line for each method."""
    places = _places(records)
    made = Figure(figsize=(4.2 * len(places), 3.6), layout="constrained")
    panels = made.subplots(1, len(places), squeeze=False)[0]
    for panel, (task, style) in zip(panels, places, strict=True):
        of = [record for record in records if (record["task"], record["style"]) == (task, style)]
        counts = sorted({record["labels"] for record in of})
        for method, title in METHODS.items():
            panel.plot(counts, [_mean(_of(of, method, count), "nll") for count in counts], ".-", label=title)
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(count) for count in counts], fontsize=8)
        panel.minorticks_off()
        panel.tick_params(axis="y", labelsize=8)
        panel.set_title(f"{task}, {style}", fontsize=10)
        panel.set_xlabel("labels that came later", fontsize=8)
    panels[0].set_ylabel("test NLL, nats", fontsize=8)
    panels[-1].legend(fontsize=7)
    return made


def _places(records: Sequence[Record]) -> list[tuple[str, str]]:
    found = {(record["task"], record["style"]) for record in records}
    return sorted(found, key=lambda place: (place[0], STYLES.index(place[1])))  # type: ignore[arg-type]


def _of(of: Sequence[Record], method: str, count: int) -> list[Record]:
    """Return the records of a method with that many labels, one a training."""
    return [record for record in of if (record["method"], record["labels"]) == (method, count)]


def _is_compared(record: Record) -> bool:
    """Return whether a record has its difference, and not only what records had at first."""
    return "difference" in record


def _mean(of: Sequence[Record], name: str) -> float:
    return sum(float(record[name]) for record in of) / len(of)


def _number(name: str) -> Callable[[Sequence[Record]], str]:
    """Return what writes the mean over trainings of a figure."""
    return lambda of: f"{_mean(of, name):.3f}"


def _difference(of: Sequence[Record]) -> str:
    """Return the mean difference with its interval, or of several trainings with the smallest and the largest."""
    if not all(map(_is_compared, of)):
        return "-"
    low, high = of[0]["low"], of[0]["high"]
    if len(of) > 1:
        low, high = (end(record["difference"] for record in of) for end in (min, max))
    text = f"{_mean(of, 'difference'):+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if len(of) == 1 and not low <= 0 <= high else text


def _ece(of: Sequence[Record]) -> str:
    if not all(map(_is_compared, of)):
        return f"{_mean(of, 'ece'):.3f}"
    return f"{_mean(of, 'ece'):.3f} ({_mean(of, 'ece_calibrated'):.3f})"


#: What a table is of, and its cells, each of the trainings of one method and number of labels.
_TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    _BEYOND: _difference,
    "NLL, nats": _number("nll"),
    "Accuracy": _number("accuracy"),
    "ECE": _ece,
}


def _key(record: Record) -> tuple[str, int, str, int, int]:
    place = list(METHODS).index(record["method"])
    return record["task"], record["seed"], record["style"], record["labels"], place
