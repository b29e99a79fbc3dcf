"""Labels that come after a training of the evidence study: what they give without training, and as training rows.

The adapter was trained on 300 rows, and 150 calibrate: the study's first draw. Then n more labels come, and all
methods have the same ones. What decides between training anew and conditioning is the difference on the same test rows,
which is known far better than either NLL.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.__main__ import say
from benchmarks.evidence.adapters import load_classifier, put, train, trained_weights
from benchmarks.evidence.gather import forward_outputs, gather
from benchmarks.evidence.methods.conditioned import corrected, corrected_probs
from benchmarks.evidence.methods.recalibration import temperature
from benchmarks.evidence.outputs import Rows
from benchmarks.evidence.plan import STYLES, TRAINED_DRAW, Training, Unit
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS
from benchmarks.sweeps.driver import Jobs, Point, Record, Sweep
from laplora.classifier import Classifier
from laplora.errors import DataError
from laplora.metrics.paired import nll_difference
from laplora.metrics.scores import accuracy, ece, nll
from laplora.prompts.examples import Example

TASK, BUDGET = "trec", 450
#: Labels that come later.
LABELS = (50, 150, 500, 1000, 2000)
METHODS = {
    "temperature": "temperature scaling",
    "conditioned": "conditioned",
    "retrained": "trained anew",
    "retrained_conditioned": "trained anew, conditioned",
}
#: The method whose NLL the others' are compared with, row by row.
REFERENCE = "retrained"


def jobs(options: argparse.Namespace) -> Jobs:
    """Yield each training with each number of later labels."""
    if options.data is None:
        raise DataError("--data FOLDER is needed but with --publish")
    for seed in options.seeds:
        for count in options.at or LABELS:
            place = LATER.runs / TASK / f"{seed}-{count}"
            yield f"{TASK}-{seed}-{count}", partial(measure, Training(TASK, BUDGET, seed), options.data, count, place)


def measure(training: Training, data: Path, count: int, place: Path) -> list[Record]:
    """Return the figures of one training with ``count`` later labels; the training anew is kept in a folder.

    Raises:
        DataError: the task has too few rows.
    """
    dealt, task = deal(training, data), TASKS[training.task]
    if len(dealt.left) < count:
        raise DataError(f"{task.name} has {len(dealt.left)} rows that could come later, asked for {count}")
    gather(training, data, say)
    calibration = [dealt.pool[number] for number in dealt.draws[TRAINED_DRAW]]
    rows = [*dealt.train, *dealt.left[:count]]
    train(task, rows, training.seed, place, say, swag=False)
    classifier, records = load_classifier(task), []
    for style in STYLES:
        put(classifier, trained_weights(Unit(training, style)))
        test = _rows(classifier, dealt.test)
        probs = [*answers(_rows(classifier, [*calibration, *dealt.left[:count]]), test, len(dealt.train))]
        put(classifier, load_file(place / f"{style}.safetensors"))
        probs += answers(_rows(classifier, calibration), _rows(classifier, dealt.test), len(rows))
        where = {"task": task.name, "seed": training.seed, "style": style, "labels": count}
        by_method = dict(zip(METHODS, probs, strict=True))
        records += [where | figures(name, of, by_method[REFERENCE], test.labels) for name, of in by_method.items()]
    return records


def answers(known: Rows, test: Rows, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an adapter's probabilities with the temperature of labelled rows, and corrected by them too.

    Args:
        known: rows whose labels the adapter has not learned; trained: rows that it was trained on.
    """
    plain = temperature(known.logits, known.labels)(test.logits)
    return plain, corrected_probs(corrected(known, trained), test)


def figures(method: str, probs: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> Record:
    """Return the NLL in nats, ECE and accuracy of a method's answers.

    ``difference`` is the NLL less that of the reference's answers, with ``low`` and ``high``, its 95 % interval over
    test rows.
    """
    found = {
        "method": method,
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "accuracy": accuracy(probs, labels),
    }
    return found | asdict(nll_difference(probs, reference, labels))


def _rows(classifier: Classifier, examples: Sequence[Example]) -> Rows:
    found = forward_outputs(classifier, examples)
    return Rows(found["logits"].double(), found["class_mask"], found["labels"], found["states"].double())


def points(records: Sequence[Record]) -> Iterable[Point]:
    """Yield each method's scores; its difference to the reference comes with the interval."""
    for record in records:
        scores = {name: record[name] for name in ("nll", "accuracy", "ece")}
        if record["method"] != REFERENCE:
            scores["difference"] = (record["difference"], record["low"], record["high"])
        yield Point(f"{record['task']}, {record['style']}", record["labels"], METHODS[record["method"]], scores)


LATER = Sweep(
    name="later",
    text=(
        "Labels that come later: condition on them, or train again?",
        "An adapter was trained on 300 rows, and 150 calibrate it. Then more labels come. All methods have the same "
        "labels and the same 500 test rows:",
        "- **temperature scaling**: the adapter stays, its temperature is of all labels that it has not learned.\n"
        "- **conditioned**: these labels correct its answers (`python -m training condition --calibration ...`).\n"
        "- **trained anew**: the later labels are training rows too. The temperature is of the 150.\n"
        "- **trained anew, conditioned**: the 150 correct that adapter.",
        "*Early* adapters are those after 3 of 8 epochs, *long* ones after all 8. Rows, tasks and training are those "
        "of the [evidence study](../evidence/RESULTS.md), whose reporting half has trec: nothing was chosen on it. "
        "One training has run, and its differences say little of another's. The difference is a method's NLL less "
        "that of the adapter trained anew, below 0 better, with its 95 % interval over test rows.",
    ),
    axis="later labels",
    metrics={"nll": "NLL, nats", "difference": "difference", "accuracy": "accuracy", "ece": "ECE"},
    jobs=jobs,
    key=lambda r: (r["task"], r["seed"], STYLES[::-1].index(r["style"]), r["labels"], list(METHODS).index(r["method"])),
    points=points,
)
