"""Labels that come after a training of the evidence study: what they give without training, and as training rows.

The adapter was trained on 300 rows, and 150 calibrate: the study's first draw. Then n more labels come. All methods
have the same labels:

``temperature``: the adapter as it was, its temperature of the 150 + n rows. ``conditioned``: these rows correct it.
``retrained``: an adapter trained anew on the 300 + n rows, its temperature of the 150. ``retrained_conditioned``: that
one, corrected by the 150. What decides between the last two and ``conditioned`` is the difference to ``retrained`` on
the same test rows, which is known far better than either NLL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
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
from laplora.metrics.noise import calibrated_ece
from laplora.metrics.paired import nll_difference
from laplora.metrics.scores import accuracy, ece, nll
from laplora.prompts.examples import Example

#: The methods in the order of their answers, and as the page names them.
METHODS = {
    "temperature": "temperature scaling",
    "conditioned": "conditioned",
    "retrained": "trained anew",
    "retrained_conditioned": "trained anew, conditioned",
}

#: The method whose NLL the others' are compared with, row by row.
REFERENCE = "retrained"

Record = dict[str, Any]


def measure(training: Training, data: Path, counts: Sequence[int], folder: Path, say: Callable[[str], None]) -> None:
    """Write ``N.json``, the figures of one training with N later labels, for each count; what is there stays.

    Figures that were written before there were differences are measured again, without training.

    Raises:
        DataError: the task has too few rows.
    """
    wanted = [count for count in counts if not _is_measured(folder / f"{count}.json")]
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
        if not (place / "training.json").is_file():
            say(f"training anew on {len(rows)} rows")
        train(task, rows, training.seed, place, say, swag=False)
        records = []
        for style in STYLES:
            known, test = given[style]
            probs = [*answers(known.at(torch.arange(len(calibration) + count)), test, len(dealt.train))]
            put(classifier, load_file(place / f"{style}.safetensors"))
            probs += answers(_rows(classifier, calibration), _rows(classifier, dealt.test), len(rows))
            where = {"task": task.name, "seed": training.seed, "style": style, "labels": count}
            by_method = dict(zip(METHODS, probs, strict=True))
            records += [where | figures(name, of, by_method[REFERENCE], test.labels) for name, of in by_method.items()]
        write_json(folder / f"{count}.json", records)


def answers(known: Rows, test: Rows, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an adapter's probabilities with the temperature of labelled rows, and corrected by them too.

    Args:
        known: rows whose labels the adapter has not learned.
        trained: rows that it was trained on.
    """
    plain = temperature(known.logits, known.labels)(test.logits)
    return plain, corrected_probs(corrected(known, trained), test)


def figures(method: str, probs: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> Record:
    """Return the NLL in nats, ECE and accuracy of a method's answers.

    ``ece_calibrated`` is the ECE that a calibrated model would measure on the same confidences. ``difference`` is the
    NLL less that of the reference's answers, with ``low`` and ``high``, its 95 % interval over test rows.
    """
    return {
        "method": method,
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "ece_calibrated": calibrated_ece(probs.amax(1)).mean,
        "accuracy": accuracy(probs, labels),
        **asdict(nll_difference(probs, reference, labels)),
    }


def _is_measured(path: Path) -> bool:
    return path.is_file() and all("difference" in record for record in json.loads(path.read_text(encoding="utf-8")))


def _rows(classifier: Classifier, examples: Sequence[Example]) -> Rows:
    found = forward_outputs(classifier, examples)
    return Rows(found["logits"].double(), found["class_mask"], found["labels"], found["states"].double())
