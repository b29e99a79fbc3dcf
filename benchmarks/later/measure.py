"""Labels that come after a training of the evidence study: what they give without training, and as training rows.

The adapter was trained on 300 rows, and 150 calibrate: the study's first draw. Then n more labels come. All methods
have the same labels:

``temperature``: the adapter as it was, its temperature of the 150 + n rows. ``conditioned``: these rows correct it.
``retrained``: an adapter trained anew on the 300 + n rows, its temperature of the 150. ``retrained_conditioned``: that
one, corrected by the 150.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import load_classifier, put, train, trained_weights
from benchmarks.evidence.gather import forward_outputs, gather
from benchmarks.evidence.methods.conditioned import corrected, corrected_probs
from benchmarks.evidence.methods.recalibration import temperature
from benchmarks.evidence.outputs import Rows
from benchmarks.evidence.plan import STYLES, TRAINED_DRAW, Training, Unit
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.errors import DataError
from laplora.files import write_json
from laplora.metrics.scores import accuracy, ece, nll
from laplora.prompts.examples import Example

#: The methods in the order of their answers, and as the page names them.
METHODS = {
    "temperature": "temperature scaling",
    "conditioned": "conditioned",
    "retrained": "trained anew",
    "retrained_conditioned": "trained anew, conditioned",
}

Record = dict[str, Any]


def measure(training: Training, data: Path, counts: Sequence[int], folder: Path, say: Callable[[str], None]) -> None:
    """Write ``N.json``, the figures of one training with N later labels, for each count; what is there stays.

    Raises:
        DataError: the task has too few rows.
    """
    wanted = [count for count in counts if not (folder / f"{count}.json").is_file()]
    if not wanted:
        return
    gather(training, data, say)
    dealt, task = deal(training, data), TASKS[training.task]
    if len(dealt.left) < max(wanted):
        raise DataError(f"{task.name} has {len(dealt.left)} rows that could come later, asked for {max(wanted)}")
    calibration = [dealt.pool[place] for place in dealt.draws[TRAINED_DRAW]]
    classifier, given = load_classifier(task), {}
    for style in STYLES:
        put(classifier, trained_weights(Unit(training, style)))
        given[style] = _rows(classifier, [*calibration, *dealt.left[: max(wanted)]]), _rows(classifier, dealt.test)
    for count in wanted:
        rows, place = [*dealt.train, *dealt.left[:count]], folder / str(count)
        say(f"training anew on {len(rows)} rows")
        train(task, rows, training.seed, place, say, swag=False)
        records = []
        for style in STYLES:
            known, test = given[style]
            probs = [*answers(known.at(torch.arange(len(calibration) + count)), test, len(dealt.train))]
            put(classifier, load_file(place / f"{style}.safetensors"))
            probs += answers(_rows(classifier, calibration), _rows(classifier, dealt.test), len(rows))
            where = {"task": task.name, "seed": training.seed, "style": style, "labels": count}
            records += [where | figures(name, of, test.labels) for name, of in zip(METHODS, probs, strict=True)]
        write_json(folder / f"{count}.json", records)


def answers(known: Rows, test: Rows, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an adapter's probabilities with the temperature of labelled rows, and corrected by them too.

    Args:
        known: rows whose labels the adapter has not learned.
        trained: rows that it was trained on.
    """
    plain = temperature(known.logits, known.labels)(test.logits)
    return plain, corrected_probs(corrected(known, trained), test)


def figures(method: str, probs: torch.Tensor, labels: torch.Tensor) -> Record:
    """Return the NLL in nats, ECE and accuracy of a method's answers."""
    return {"method": method, "nll": nll(probs, labels), "ece": ece(probs, labels), "accuracy": accuracy(probs, labels)}


def _rows(classifier: Classifier, examples: Sequence[Example]) -> Rows:
    found = forward_outputs(classifier, examples)
    return Rows(found["logits"].double(), found["class_mask"], found["labels"], found["states"].double())
