"""The page of a reproduction: what was run, the report's tables and figure, and every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ConfigError
from laplora.files import write_json
from training.config.reproduced import MODELS, REPORTED, SHIFTED, TASKS
from training.report.pictures import save_picture
from training.reproduction.checkpoint import TEST, Answers, answers_folder, read_answers
from training.reproduction.figure import steps_figure
from training.reproduction.reading import caveats, of_ours, of_the_report
from training.reproduction.record import RECORD, read_record, scores
from training.reproduction.tables import (
    Pair,
    Record,
    beside_the_report,
    by_pair,
    of_checkpoints,
    of_methods,
    of_shift,
    what_was_run,
)

_DOCS = Path(__file__).resolve().parents[2] / "docs"
#: What the seeds of one model and task have in common.
_SHARED = (
    "base",
    "quantization",
    "steps",
    "batch_size",
    "learning_rate",
    "targets",
    "structure",
    "prior",
    "rows",
    "settings",
)
_TITLE = "# The report's experiments, reproduced"


def write_page(out: Path) -> Path:
    """Write ``reproduction.md`` with its figure and its records into a folder of results, and return it."""
    return _write(out, out, "")


def publish(out: Path) -> Path:
    """Write the documentation's page from a folder of results, and return it; ConfigError where nothing is there."""
    return _write(out, _DOCS, "results/")


def _write(out: Path, folder: Path, place: str) -> Path:
    """Write the page into a folder, figure and records at a place in it."""
    found = collected(out)
    if not found:
        raise ConfigError(f"no results in {out}: 'python -m training reproduce --models MODEL' makes them")
    records, ensembles = list(found.values()), ensembles_of_seeds(found)
    figure = f"{place}reproduction.png"
    (folder / place).mkdir(parents=True, exist_ok=True)
    save_picture(steps_figure(records), folder / figure)
    write_json(
        folder / place / "reproduction.json",
        {"records": records, "ensembles": {"/".join(pair): of for pair, of in ensembles.items()}},
    )
    page = folder / "reproduction.md"
    page.write_text(page_text(records, ensembles, figure), encoding="utf-8")
    return page


def collected(out: Path) -> dict[Path, Record]:
    """Return the records of a folder of results by the trainings' folders.

    Raises:
        ConfigError: two trainings of one model, task and seed, or seeds that differ in more than the seed.
    """
    found: dict[Path, Record] = {}
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
            found[path.parent] = record
    for pair, seeds in by_pair(list(found.values())).items():
        if differing := [name for name in _SHARED if not _same([r[name] for r in seeds if name in r])]:
            raise ConfigError(
                f"the seeds of {' on '.join(pair)} in {out} differ in {', '.join(differing)}: give each its own --out"
            )
    return found


def _same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def ensembles_of_seeds(found: Mapping[Path, Record]) -> dict[Pair, dict[str, Any]]:
    """Return the metrics of the average of the seeds' MAP probabilities, by pair that has several whole seeds."""
    ensembles: dict[Pair, dict[str, Any]] = {}
    for pair in by_pair(list(found.values())):
        members = [
            answers
            for folder, record in found.items()
            if (record["model"], record["task"]) == pair and record.get("whole")
            if (answers := read_answers(answers_folder(folder, record["steps"][-1]) / f"{TEST}.safetensors"))
        ]
        if len(members) > 1 and all(torch.equal(m.labels, members[0].labels) for m in members):
            mean = torch.stack([member.probs["map"] for member in members]).mean(0)
            ensembles[pair] = scores(Answers(members[0].labels, {"map": mean}))["map"]
    return ensembles


def page_text(records: list[Record], ensembles: Mapping[Pair, Mapping[str, Any]], figure: str) -> str:
    """Return the page, in Markdown."""
    pairs = by_pair(records)
    unrun = [model for model in MODELS if model not in {name for name, _ in pairs}]
    structure = ", ".join(sorted({f"`{r['structure']}`" for r in records}))
    parts = [
        _TITLE,
        "Every checkpoint of a fine-tuning gets its own Laplace posterior, and both answer the same test rows. "
        "`python -m training reproduce --models MODEL ... --tasks TASK ...` does it, and writes this page. "
        "A stopped call continues. [Training](training.md#the-reports-experiments) explains the options.",
        "## What was run",
        what_was_run(records),
        _not_run(unrun),
        f"{_chosen(records)} Every seed has the same calibration and test rows. The posterior's structure is "
        f"{structure}. {_cut(records)}NLL is in nats, ECE has 15 bins. "
        "One seed: in parentheses a 95 % interval of the mean, by a bootstrap over the test rows. Several: ± is the "
        "standard deviation between trainings. **confidence − accuracy** is above 0 where answers are overconfident, "
        "below 0 where they are underconfident.",
        caveats(records),
        "## Table 2: fine-tuned, on WinoGrande-S",
        beside_the_report(records, "map", 0),
        "## Table 3: with Laplace, on WinoGrande-S",
        beside_the_report(records, "laplace", 1),
        of_the_report(),
        of_ours(records),
        "## Figure 1: against steps",
        f"![Accuracy, NLL and ECE against optimizer steps]({figure})",
        "[The calibration study](results.md#how-close-each-structure-comes-to-the-exact-posterior) has the curvatures "
        "of the report's section 3.2 side by side: the diagonal Fisher, K-FAC and the full GGN.",
        "## The methods at the last checkpoint",
        "As the original paper compares them after 10,000 steps (Yang et al., arXiv 2308.13111, section 5.1). A "
        "checkpoint ensemble averages the last three checkpoints, or two where there are no more, MC dropout ten "
        "masks. The paper has temperature scaling in its other comparison, the one with held-out rows, and no "
        "conditioning.",
    ]
    for model in dict.fromkeys(name for name, _ in pairs):
        parts += [f"### {model}", of_methods(records, model, ensembles)]
    shifted = {model: seeds for (model, task), seeds in pairs.items() if task == "openbookqa"}
    if shifted := {
        model: seeds for model, seeds in shifted.items() if all(r["shift"] and r.get("whole") for r in seeds)
    }:
        parts.append("## Distribution shift: trained on OpenBookQA")
        parts.append(
            "The number of rows is in parentheses. Left out are rows with more choices than OpenBookQA has, and those "
            f"that are among its own. {_cut_of_sets([r for seeds in shifted.values() for r in seeds])}"
        )
        for model, seeds in shifted.items():
            parts += [f"### {model}, shifted", of_shift(seeds)]
    parts.append("## Every checkpoint")
    for (model, task), seeds in pairs.items():
        parts += [f"### {model} on {TASKS[task]}", of_checkpoints(seeds)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _not_run(models: list[str]) -> str:
    if not models:
        return ""
    names = ", ".join(f"`{model}`" for model in models)
    instead = " [Models](models.md#four-large-models) says what was run of the large ones in place of that."
    return f"**Not run: {names}.** This page's results have none of them." + instead * any(
        m in REPORTED for m in models
    )


def _chosen(records: list[Record]) -> str:
    """Return what chose the prior and the temperature, in words; records of before say nothing of the prior."""
    if all(record.get("prior", "validation") == "validation" for record in records):
        return (
            "Calibration rows choose the prior precision and the temperature, and teach conditioning; test rows choose "
            "nothing."
        )
    return "Calibration rows choose the temperature and teach conditioning; test rows choose nothing."


def _cut(records: list[Record]) -> str:
    """Return of which tasks test prompts were cut, in words; nothing where none was."""
    cut = {record["task"]: f"{record['cut']} of {TASKS[record['task']]}" for record in records if record.get("cut")}
    return f"Test prompts that were too long lost their start: {', '.join(cut.values())}. " if cut else ""


def _cut_of_sets(records: list[Record]) -> str:
    """Return the same of the other data sets."""
    shifted = [(name, one) for record in records for name, one in record["shift"].items() if one.get("cut")]
    cut = {name: f"{one['cut']} of {SHIFTED[name][0]}" for name, one in shifted}
    return f"Prompts that were too long lost their start: {', '.join(cut.values())}." if cut else ""
