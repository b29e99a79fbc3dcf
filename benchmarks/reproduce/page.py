"""The page of a reproduction: what was run, the report's tables and figure, and the methods at the last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import ROOT
from benchmarks.reproduce.checkpoint import EVIDENCE, Answers, answers_folder, read_answers
from benchmarks.reproduce.figure import save_picture, steps_figure
from benchmarks.reproduce.record import RECORD, read_record, scores
from benchmarks.reproduce.subjects import MODELS, TASKS
from benchmarks.reproduce.tables import (
    Pair,
    Record,
    beside_the_report,
    by_pair,
    caveats,
    of_methods,
    what_was_run,
    without_skill,
)
from laplora.errors import ConfigError
from laplora.files.atomic import write_json

#: The fields that the seeds of one model and task have in common.
_SHARED = ("base", "quantization", "steps", "batch_size", "learning_rate", "targets", "structure", "rows", "settings")
_REPORT = (
    "The report's figures are for 2,500 steps. Three of its four Laplace models have an NLL of .67 to .68 at an "
    "accuracy of .72 to .73, with an ECE of .19 to .20. That fits a confidence about 0.20 below accuracy."
)
_METHODS = (
    "The comparison is that of Yang et al. (arXiv 2308.13111, section 5.1), on the tasks with skill. A checkpoint "
    "ensemble averages the last three checkpoints, MC dropout ten masks."
)


def write_page(out: Path) -> Path:
    """Write ``reproduction.md`` with its figure and its records into a folder of results, and return it."""
    return _write(out, out, "")


def publish(out: Path) -> Path:
    """Write the documentation's page from a folder of results, and return it; ConfigError where nothing is there.

    Published figures of models and tasks that are not in the folder stay.
    """
    return _write(out, ROOT / "docs", "results/")


def _write(out: Path, folder: Path, place: str) -> Path:
    """Write the page into a folder, figure and records at a place in it; in another folder other pairs stay."""
    collected_records = collected(out)
    if not collected_records:
        raise ConfigError(f"no results in {out}: 'python -m benchmarks.reproduce --models MODEL' makes them")
    records, ensembles = list(collected_records.values()), ensembles_of_seeds(collected_records)
    if out != folder and (before := folder / place / "reproduction.json").is_file():
        kept, kept_ensembles = read_published(before)
        made = {(r["model"], r["task"]) for r in records}
        records += [r for r in kept if (r["model"], r["task"]) not in made]
        ensembles |= {pair: of for pair, of in kept_ensembles.items() if pair not in made}
    records.sort(key=lambda r: (r["model"], r["task"], r["seed"]))
    (folder / place).mkdir(parents=True, exist_ok=True)
    save_picture(steps_figure(records), folder / f"{place}reproduction.png")
    write_json(
        folder / place / "reproduction.json",
        {"records": records, "ensembles": {"/".join(pair): of for pair, of in ensembles.items()}},
    )
    page = folder / "reproduction.md"
    page.write_text(page_text(records, ensembles, f"{place}reproduction.png"), encoding="utf-8")
    return page


def read_published(path: Path) -> tuple[list[Record], dict[Pair, dict[str, Any]]]:
    """Return the records of a page's file, and the ensembles of seeds by pair."""
    content = json.loads(path.read_text(encoding="utf-8"))
    ensembles = {(model, task): of for name, of in content["ensembles"].items() for model, task in [name.split("/")]}
    return content["records"], ensembles


def collected(out: Path) -> dict[Path, Record]:
    """Return the records of a folder of results by the trainings' folders.

    Raises:
        ConfigError: two trainings of one model, task and seed, or seeds that differ in more than the seed.
    """
    records: dict[Path, Record] = {}
    owners: dict[tuple[str, str, int], Path] = {}
    for path in sorted(out.glob(f"*/{RECORD}")):
        record = read_record(path.parent)
        assert record is not None
        key = record["model"], record["task"], record["seed"]
        if (other := owners.setdefault(key, path.parent)) != path.parent:
            raise ConfigError(
                f"{other.name} and {path.parent.name} are one model, task and seed with different configurations: "
                f"remove one of them from {out}, or give each its own --out"
            )
        if record["checkpoints"]:
            records[path.parent] = record
    for pair, seeds in by_pair(list(records.values())).items():
        if differing := [name for name in _SHARED if any(seeds[0].get(name) != r.get(name) for r in seeds)]:
            raise ConfigError(
                f"the seeds of {' on '.join(pair)} in {out} differ in {', '.join(differing)}: give each its own --out"
            )
    return records


def ensembles_of_seeds(records: Mapping[Path, Record]) -> dict[Pair, dict[str, Any]]:
    """Return the metrics of the average of the seeds' MAP probabilities, by pair that has several whole seeds."""
    ensembles: dict[Pair, dict[str, Any]] = {}
    for pair in by_pair(list(records.values())):
        members = [
            answers
            for folder, record in records.items()
            if (record["model"], record["task"]) == pair and record.get("whole")
            if (answers := read_answers(answers_folder(folder, record["steps"][-1])))
        ]
        if len(members) > 1 and all(torch.equal(m.labels, members[0].labels) for m in members):
            mean = torch.stack([member.probs["map"] for member in members]).mean(0)
            ensembles[pair] = scores(Answers(members[0].labels, {"map": mean}))["map"]
    return ensembles


def page_text(records: Sequence[Record], ensembles: Mapping[Pair, Mapping[str, Any]], figure: str) -> str:
    models = {record["model"] for record in records}
    unrun = [f"`{model}`" for model in MODELS if model not in models]
    structure = ", ".join(sorted({f"`{r['structure']}`" for r in records}))
    cut = {f"{record['cut']} of {TASKS[record['task']]}" for record in records if record.get("cut")}
    parts = [
        "# The report's experiments, reproduced",
        "Every checkpoint of a fine-tuning gets its own Laplace posterior, and both answer the same test rows. "
        "`python -m benchmarks.reproduce` ([options](training.md#the-reports-experiments)) writes this page.",
        "## What was run",
        what_was_run(records),
        unrun and f"**Not run: {', '.join(unrun)}.** [Models](models.md#four-large-models) says what was run instead.",
        "Calibration rows choose temperature and prior precision, and teach `conditioned`. All seeds share calibration "
        f"and test rows. The posterior's structure is {structure}. "
        + (f"Test prompts that were too long lost their start: {', '.join(sorted(cut))}. " if cut else "")
        + "NLL is in nats, ECE has 15 bins. For one seed a 95 % bootstrap interval over test rows is in parentheses. "
        "For several, ± is the standard deviation between trainings. **Confidence − accuracy** is above 0 for "
        "overconfident answers.",
        caveats(records),
        "## WinoGrande-S: fine-tuned (Table 2)",
        beside_the_report(records, {"map": "MAP"}, 0),
        "## WinoGrande-S: with Laplace (Table 3)",
        "The report chose the prior precision by the evidence, which needs no calibration rows.",
        beside_the_report(records, {"laplace": "prior by calibration rows", EVIDENCE: "prior by evidence"}, 1),
        _REPORT,
        "## Figure 1: against steps",
        f"![Accuracy, NLL and ECE against optimizer steps]({figure})",
        "## The methods at the last checkpoint",
        _METHODS,
    ]
    pairs = by_pair(records)
    skilled = [record for pair, seeds in pairs.items() if not without_skill(pair[1], seeds) for record in seeds]
    for model in dict.fromkeys(model for model, _ in by_pair(skilled)):
        parts += [f"### {model}", of_methods(skilled, model, ensembles)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
