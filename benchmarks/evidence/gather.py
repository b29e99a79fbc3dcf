"""Gather: train, and one forward pass over the rows. It gives the arrays that most methods answer from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.evidence.adapters import put, train, trained_weights
from benchmarks.evidence.plan import Training, Unit, units
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.prompts.examples import Example

_BATCH = 16

Say = Callable[[str], None]


def gather(training: Training, data: Path, say: Say) -> None:
    """Train, and write the arrays of both of its units; what is there already is not done again."""
    wanted = [unit for unit in units(training) if not gathered(unit)]
    if not wanted:
        return
    dealt = deal(training, data)
    adapters = training.folder / "adapters"
    task = TASKS[training.task]
    say(f"training on {len(dealt.train)} rows")
    classifier = train(task, dealt.train, training.seed, adapters, say)
    for unit in wanted:
        put(classifier, trained_weights(unit))
        say(f"{unit.style}: {len(dealt.train) + len(dealt.pool) + len(dealt.test)} rows")
        write_outputs(classifier, dealt, unit.folder)


def gathered(unit: Unit) -> bool:
    """Return whether a unit's arrays are whole: ``outputs`` is written last."""
    return (unit.folder / "outputs.safetensors").is_file()


def write_outputs(classifier: Classifier, dealt: Dealt, folder: Path) -> None:
    """Write what one adapter gives for the training, pool and test rows: logits and last states."""
    found = forward_outputs(classifier, [*dealt.train, *dealt.pool, *dealt.test])
    left = len(dealt.train) + len(dealt.pool)
    places = {"train": slice(len(dealt.train)), "pool": slice(len(dealt.train), left), "test": slice(left, None)}
    outputs = {f"{split}.{name}": values[place] for split, place in places.items() for name, values in found.items()}
    write_tensors(folder / "outputs.safetensors", outputs | {"draws": torch.tensor(dealt.draws)})


@torch.no_grad()
def forward_outputs(classifier: Classifier, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return ``logits``, ``class_mask``, ``states`` and ``labels`` of rows, each (rows, ...)."""
    classifier.model.eval()
    forwards = _Forwards(len(examples), classifier.class_count)
    for index, batch in classifier.batched(examples, _BATCH):
        scores = classifier.readout.scores(classifier.model, batch)
        forwards.keep(index, scores.logits, scores.hidden, batch.class_mask)
    return forwards.tensors() | {"labels": torch.tensor([example.label for example in examples])}


class _Forwards:
    """What the forward passes gave, row by row."""

    def __init__(self, rows: int, classes: int) -> None:
        self.logits = torch.zeros(rows, classes)
        self.mask = torch.zeros(rows, classes, dtype=torch.bool)
        self.states = torch.zeros(rows, 0)

    def keep(self, index: list[int], logits: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> None:
        """Keep a batch's outputs at these rows."""
        if not self.states.shape[1]:
            self.states = torch.zeros(len(self.logits), states.shape[1])
        self.logits[index], self.states[index], self.mask[index] = logits.float(), states.float(), mask

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return them by name."""
        return {"logits": self.logits, "class_mask": self.mask, "states": self.states}
