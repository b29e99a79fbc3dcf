"""Comparisons of heads on four tasks that chose nothing: their rows, what heads read of these, and a command line."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.execution.progress import Silent
from laplora.experts.base import Labelled, Outputs
from laplora.features.expert_passes import expert_passes
from laplora.files.atomic import write_json
from laplora.fitting.rows import read_rows, shared_folds
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base
from laplora.prompts.examples import Example, label_tensor
from laplora.settings import FitSettings

#: Chosen for their kinds before any was measured: intents, topics, two classes, opinions.
NAMES, SEEDS = ("snips", "ag_news", "subj", "sentiment"), (0, 1, 2)
#: Rows of a task that may be labelled, and others that test.
LABELLED, TEST = 450, 1000
Record = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """Labelled rows, and test rows that no draw of the same seed has labelled.

    Attributes:
        places: (labelled,) int64 among the task's rows; test: (TEST,) int64, those that test.
        truth: (TEST,) int64, their labels.
    """

    places: torch.Tensor
    rows: tuple[Example, ...]
    labelled: Labelled
    test: torch.Tensor
    truth: torch.Tensor


@dataclass(frozen=True)
class ReadTask:
    """A task's rows with everything that heads read of them."""

    classifier: Classifier
    rows: tuple[Example, ...]
    outputs: Outputs
    names: tuple[Any, ...]

    def drawn(self, seed: int, labelled: int = LABELLED) -> Draw:
        """Return a draw with so many labelled rows, at most ``LABELLED``; fewer are the first of more."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        places, test = order[:labelled], order[LABELLED:]
        rows = tuple(self.rows[place] for place in places.tolist())
        some = shared_folds(self.classifier, (), rows, FitSettings().calibration.folds, seed)
        truth = label_tensor([self.rows[place] for place in test.tolist()], self.classifier.class_count)
        return Draw(places, rows, some, test, truth)

    def embeddings(self, places: torch.Tensor) -> Any:
        """Return the encoder's features of some rows, an array (rows, features)."""
        return torch.cat([*self.outputs.take(places).features["encoder"].values()], 1).numpy()


def read_task(name: str, data: Path) -> ReadTask:
    """Return ``LABELLED`` + ``TEST`` rows of a task; ``data``: folder with the data sets of ``benchmarks.evidence``."""
    spec, task = BaseSpec("smollm2-135m-instruct", quantization="none"), TASKS[name]
    location = locate_base(spec)
    model = load_base_model(location, spec, device=torch.device("cpu")).model
    classifier = Classifier(model, load_tokenizer(location), task.template, task.labels, max_tokens=task.max_tokens)
    unique = {str(fields["text"]): task.labels[label] for fields, label in task.read(data)}
    some = random.Random("label audit").sample(sorted(unique.items()), LABELLED + TEST)
    rows = read_rows([{"text": text, "label": label} for text, label in some], classifier, "label")
    settings = FitSettings()
    passes = expert_passes(classifier, settings.experts.names, settings.experts.encoder, print)
    return ReadTask(classifier, rows, passes.outputs(rows, Silent(), ""), passes.names)


def command(
    arguments: Sequence[str] | None,
    about: str | None,
    folder: Path,
    units: Sequence[Mapping[str, Any]],
    measured: Callable[..., Record],
    page: Callable[[Sequence[Record]], str],
    names: Sequence[str] = NAMES,
) -> None:
    """Measure what ``folder``/results.json lacks, and write ``folder``/RESULTS.md.

    Args:
        about: of the command line's help.
        units: what a task has one record each of, such as a seed; measured: gets a ``ReadTask`` and a unit's values.
        names: of the tasks.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{folder.name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets of benchmarks.evidence")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    results = folder / "results.json"
    records: list[Record] = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else []

    def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return (record["task"], *(record[name] for name in units[0]))

    known = {key(one) for one in records}
    for name in names if options.data and not options.tables else ():
        missing = [unit for unit in units if key({"task": name, **unit}) not in known]
        task = read_task(name, options.data) if missing else None
        for unit in missing:
            records.append({"task": name, **unit, **measured(task, **unit)})
            write_json(results, sorted(records, key=key))
            print(records[-1], flush=True)
    (folder / "RESULTS.md").write_text(page(records), encoding="utf-8")
