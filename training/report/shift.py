"""The report of a shift evaluation: one table, in the run's report and, published, on the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ConfigError
from laplora.files.atomic import write_json
from laplora.linearised import entropy
from laplora.metrics import scores
from laplora.metrics.detection import detection
from laplora.report.names import display_name
from training.config import RunConfig
from training.report.markdown import fill, markdown_table
from training.report.rounding import rounded

#: The tensors of one set, by name: ``probs.NAME`` (rows, classes) float64 of each predictive, ``labels`` (rows,) int64,
#: -1 where there is no answer, ``accepted`` and ``unfamiliar`` (rows,) bool of the recommended predictive, and
#: ``familiarity`` (rows,) float64 where the artifact has it.
Answers = Mapping[str, torch.Tensor]


def set_record(answers: Answers, inside: Answers | None, recommended: str) -> dict[str, Any]:
    """Return one set's figures as JSON values; those that need a label are None where there is none.

    ``inside`` are the answers to the run's test rows, to tell the set's rows from; None for those rows.
    """
    labels, accepted = answers["labels"], answers["accepted"]
    labelled = bool((labels >= 0).all())
    probs = {name.removeprefix("probs."): p for name, p in answers.items() if name.startswith("probs.")}
    detectors = {}
    if inside is not None:
        detectors["map_entropy"] = detection(*(entropy(one["probs.map"]) for one in (inside, answers)))
        if "familiarity" in inside:
            detectors["familiarity"] = detection(-inside["familiarity"], -answers["familiarity"])
    record: dict[str, Any] = {
        "rows": len(labels),
        "predictives": {
            name: {m: getattr(scores, m)(p, labels) if labelled else None for m in ("accuracy", "nll", "ece")}
            for name, p in probs.items()
        },
        "accepted": int(accepted.sum()),
        "accepted_errors": int((probs[recommended].argmax(1) != labels)[accepted].sum()) if labelled else None,
        "unfamiliar": float(answers["unfamiliar"].double().mean()),
        "detection": {name: {k: getattr(d, k) for k in ("auroc", "low", "high")} for name, d in detectors.items()},
    }
    return {key: rounded(value) for key, value in record.items()}


def write_shift_report(record: Mapping[str, Any], folder: Path) -> None:
    """Write shift.json and shift.md into a folder."""
    write_json(folder / "shift.json", record)
    (folder / "shift.md").write_text(f"# Distribution shift\n\n{shift_report(record)}", encoding="utf-8")


def publish_shift(config: RunConfig, docs: Path = Path("docs")) -> None:
    """Put a measured report on ``docs/promises.md`` and into ``docs/results``; ConfigError: nothing was measured."""
    report, page = config.run_dir / "report", docs / "promises.md"
    if not (report / "shift.json").is_file():
        raise ConfigError(f"no shift.json in {report}: run 'python -m training shift' without --publish first")
    record = json.loads((report / "shift.json").read_text(encoding="utf-8"))
    text = fill(page.read_text(encoding="utf-8"), "shift", {"report": shift_report(record)})
    shutil.copyfile(report / "shift.json", docs / "results" / "shift.json")
    page.write_text(text, encoding="utf-8")


def shift_report(record: Mapping[str, Any]) -> str:
    """Return the report as Markdown: what was measured, the table, and where each set comes from."""
    served, sets = record["recommended"], record["sets"]
    names = list(sets["test"]["predictives"])
    heading = ["set", "rows", "accuracy", *(f"NLL, {display_name(n)}" for n in names), "ECE", "accepted (errors)"]
    heading += ["unfamiliar", "AUROC, familiarity", "AUROC, MAP entropy"]
    rows, sources = [], []
    for name, one in sets.items():
        title, found, errors = "test rows" if name == "test" else name, one["predictives"], one["accepted_errors"]
        numbers = [found[served]["accuracy"], *(found[n]["nll"] for n in names), found[served]["ece"]]
        told = [one["detection"].get(key) for key in ("familiarity", "map_entropy")]
        rows.append(
            [
                *(title, one["rows"], *("-" if number is None else f"{number:.3f}" for number in numbers)),
                f"{one['accepted']}" + ("" if errors is None else f" ({errors})"),
                f"{one['unfamiliar']:.2f}",
                *("-" if auroc is None else "{auroc:.3f} [{low:.2f}–{high:.2f}]".format(**auroc) for auroc in told),
            ]
        )
        left_out = ", ".join(f"{count} {reason}" for reason, count in one["left_out"].items() if count)
        if not one["source"].startswith("the first") or left_out:  # a corruption of test rows says so by its name
            sources.append(f"- {title}: {one['source']}" + (f"; left out: {left_out}" if left_out else ""))
    return (
        f"`{record['name']}`, seed {record['seed']}, artifact `{record['artifact'][:19]}`; "
        f"accuracy, ECE, decisions and flags are those of {display_name(served)}.\n\n"
        + "\n".join([markdown_table(heading, rows), *sources])
        + f"\n\nVersions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}.\n"
    )
