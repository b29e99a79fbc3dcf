"""The tables, the plot and the documentation's section of a shift evaluation, from its JSON record alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laplora.decisions.uncertainty import FLAGS
from laplora.report.names import display_name
from training.report.markdown import markdown_table

Record = Mapping[str, Any]

#: Scores that tell shifted rows from test rows, as they are written; some are those of one predictive.
_DETECTORS = {
    "label_mass": "label mass (low)",
    "familiarity": "familiarity (low)",
    "epistemic": "epistemic",
    "total_entropy": "total entropy",
    "map_entropy": "MAP entropy",
    "confidence": "1 − confidence",
}
Best = Callable[[Iterable[float]], float]
#: What is shown of every predictive: its title, and which of a row is the best: the largest, the smallest, or none.
_TABLES: dict[str, tuple[str, Best | None]] = {
    "accuracy": ("Accuracy", max),
    "nll": ("NLL", min),
    "ece": ("ECE", min),
    "total_entropy": ("Mean entropy", None),
}
_COLORS = ("#c44e52", "#dd8452", "#2a6fb0", "#55a868", "#8172b3", "#937860", "#4c4c4c")
_UNPUBLISHED = (
    "No figures are published yet: `python -m training shift --config training/configs/sst2-smollm2.yaml` "
    "measures them, and `--publish` puts them here.\n"
)


def page_section(records: Sequence[Record]) -> dict[str, str]:
    """Return the text of the documentation's place ``tables``: every report's; one sentence where there is none."""
    parts = [
        f"### {r['name']}\n\n{shift_tables(r)}\n![NLL and detection](results/shift_{r['name']}.png)\n" for r in records
    ]
    return {"tables": "\n".join(parts) or _UNPUBLISHED}


def shown_predictives(record: Record) -> list[str]:
    """Return the predictives that the plot shows: MAP, temperature, fast, Laplace and what is recommended."""
    there = record["sets"]["test"]["predictives"]
    wanted = ["map", "temperature", "fast_served", "laplace", record["recommended"]]
    return [n for n in dict.fromkeys(wanted) if n in there]


def epistemic_predictive(record: Record) -> str | None:
    """Return whose epistemic uncertainty is shown: the recommended one's, else the first that has any."""
    there = record["sets"]["test"]["predictives"]
    names = [record["recommended"], "laplace", *there]
    return next((n for n in names if n in there and there[n]["epistemic"] is not None), None)


def detectors(record: Record, name: str) -> dict[str, dict[str, float]]:
    """Return the detectors of a set that are shown, by their key; those of a predictive are the recommended one's."""
    of_set, chosen = record["sets"][name], epistemic_predictive(record)
    scores = {**of_set["predictives"][record["recommended"]]["detection"], **of_set["detection"]}
    if chosen is not None:
        scores["epistemic"] = of_set["predictives"][chosen]["detection"]["epistemic"]
    return {key: scores[key] for key in _DETECTORS if key in scores}


def shift_tables(record: Record) -> str:
    """Return the report as Markdown."""
    served, chosen = record["recommended"], epistemic_predictive(record)
    whose = f" (epistemic: {display_name(chosen)})" if chosen not in (None, served) else ""
    parts = [
        f"`{record['name']}` on {record['base_model']} ({record['quantization']}), seed {record['seed']}, artifact "
        f"`{record['artifact'][:19]}`; recommended predictive: {display_name(served)}. NLL and entropies in nats, ECE "
        "over 15 bins, bold: best of its row; intervals: 95 %; texts without an answer have entropies alone.\n",
        *(_predictives_table(record, metric) for metric in _TABLES),
        f"Flags and decisions of {display_name(served)}:\n\n" + _operation_table(record, served, chosen),
    ]
    if any(of_set["fast"] for of_set in record["sets"].values()):
        parts.append(
            "What mode fast defers to Laplace, all rows and the unfamiliar ones among them, and the share of rows "
            "whose decision is Laplace's:\n\n" + _deferral_table(record)
        )
    parts += [
        "AUROC of telling a set's rows from the test rows by each predictive's entropy; 0.5 is chance:\n\n"
        + _entropy_table(record),
        f"The same by other scores{whose}, the entropy and confidence of {display_name(served)}:\n\n"
        + _detection_table(record, "auroc", best=max),
        "Share of a set's rows that pass unnoticed at the threshold that 95 % of the test rows pass (0.95 is chance):"
        "\n\n" + _detection_table(record, "fpr_at_95_tpr", best=min),
        _sources(record),
    ]
    return "\n".join(parts)


def _shifted(record: Record) -> list[str]:
    """Return the names of the sets that are not the run's test rows."""
    return [name for name, of_set in record["sets"].items() if of_set["kind"] != "in_distribution"]


def _predictives_table(record: Record, metric: str) -> str:
    title, best = _TABLES[metric]
    names = list(record["sets"]["test"]["predictives"])
    rows = []
    for name, of_set in record["sets"].items():
        values = [of_set["predictives"][n][metric] for n in names]
        if any(value is not None for value in values):
            texts = [f"{value:.3f}" for value in values]
            rows.append([_set_name(name), of_set["rows"], *bold_best(texts, best)])
    return markdown_table(["set", "rows", *(f"{title}, {display_name(n)}" for n in names)], rows)


def _operation_table(record: Record, served: str, chosen: str | None) -> str:
    rows = []
    for name, of_set in record["sets"].items():
        values = of_set["predictives"][served]
        epistemic = None if chosen is None else of_set["predictives"][chosen]["epistemic"]
        count, errors = values["accepted"], values["accepted_errors"]
        rows.append(
            [
                _set_name(name),
                of_set["truncated"],
                f"{of_set['label_mass']:.4f}",
                "-" if epistemic is None else f"{epistemic:.4f}",
                *(f"{values['flags'][flag]:.3f}" for flag in FLAGS),
                f"{values['review']:.3f}",
                count,
                f"{errors / count:.3f} ({errors})" if count and errors is not None else "-",
            ]
        )
    flags = [flag.replace("_", " ") for flag in FLAGS]
    heading = ["set", "cut", "label mass", "epistemic", *flags, "to review", "accepted", "errors among them"]
    return markdown_table(heading, rows)


def _deferral_table(record: Record) -> str:
    rows = []
    for name, of_set in record["sets"].items():
        fast = of_set["fast"]
        shares = [fast["handed_over"], fast["unfamiliar"], *fast["same_decision"].values()]
        rows.append([_set_name(name), of_set["rows"], *(f"{share:.3f}" for share in shares)])
    alike = [f"decided alike, {display_name(n)}" for n in record["sets"]["test"]["fast"]["same_decision"]]
    return markdown_table(["set", "rows", "deferred", "unfamiliar", *alike], rows)


def _entropy_table(record: Record) -> str:
    predictives = list(record["sets"]["test"]["predictives"])
    rows = []
    for name in _shifted(record):
        of_set = record["sets"][name]["predictives"]
        detections = [of_set[n]["detection"]["total_entropy"] for n in predictives]
        rows.append([_set_name(name), *_best_marked(detections, "auroc", max)])
    return markdown_table(["set", *(display_name(n) for n in predictives)], rows)


def _detection_table(record: Record, value: str, best: Best) -> str:
    scores = {name: detectors(record, name) for name in _shifted(record)}
    keys = [key for key in _DETECTORS if any(key in of_set for of_set in scores.values())]
    rows = [
        [_set_name(name), *_best_marked([of_set[key] for key in keys], value, best)] for name, of_set in scores.items()
    ]
    return markdown_table(["set", *(_DETECTORS[key] for key in keys)], rows)


def _best_marked(detections: Sequence[Record], value: str, best: Best) -> list[str]:
    """Return one value of each detector, the best bold, an AUROC with its interval."""
    texts = [f"{one[value]:.3f}" for one in detections]
    cells = bold_best(texts, best)
    if value != "auroc":
        return cells
    bounds = [f"[{_short(one['low'])}–{_short(one['high'])}]" for one in detections]
    return [f"{cell} {bound}" for cell, bound in zip(cells, bounds, strict=True)]


def _sources(record: Record) -> str:
    lines = []
    for name, of_set in record["sets"].items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in of_set["left_out"].items() if count)
        lines.append(f"- {_set_name(name)}: {of_set['source']}" + (f"; left out: {left_out}" if left_out else ""))
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return "\n".join(lines) + f"\n\nVersions: {versions}.\n"


def _set_name(name: str) -> str:
    return "test rows" if name == "test" else name


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.2f}"


def bold_best(texts: Sequence[str], best: Best | None) -> list[str]:
    """Return the numbers, those that are shown like the best one bold."""
    top = best(float(text) for text in texts) if best else None
    return [f"**{text}**" if float(text) == top else text for text in texts]


def shift_figure(record: Record) -> Figure:
    """Return two panels of bars: the NLL of every set by predictive, and every detector's AUROC by set."""
    sets, shifted = record["sets"], _shifted(record)
    figure = Figure(figsize=(10, 1.6 + 0.55 * len(sets)), layout="constrained")
    figure.suptitle(f"{record['name']}: the same artifact on other rows", fontweight="bold")
    left, right = figure.subplots(1, 2)
    labelled = [s for s in sets if sets[s]["predictives"]["map"]["nll"] is not None]
    nll = {display_name(n): [sets[s]["predictives"][n]["nll"] for s in labelled] for n in shown_predictives(record)}
    _bars(left, [_set_name(s) for s in labelled], nll)
    left.set_xlabel("NLL, nats: shorter is better")
    scores = [detectors(record, s) for s in shifted]
    _bars(right, shifted, {_DETECTORS[key]: [of_set[key]["auroc"] for of_set in scores] for key in scores[0]})
    right.axvline(0.5, color="black", linestyle="--", linewidth=1)
    right.set_xlim(0, 1)
    right.set_xlabel("AUROC against the test rows (0.5: chance)")
    return figure


def _bars(axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Draw a group of horizontal bars for each set, the first set on top."""
    height = 0.8 / len(series)
    for i, ((title, values), color) in enumerate(zip(series.items(), _COLORS, strict=False)):
        places = [g - 0.4 + height * (i + 0.5) for g in range(len(groups))]
        axes.barh(places, values, height=height, color=color, label=title)
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
