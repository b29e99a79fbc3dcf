"""Gather: the only pass over a trained model. It gives the arrays that every method answers from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import put, train
from benchmarks.evidence.grams import jacobian_store, products_of_bfloat16
from benchmarks.evidence.plan import Training, Unit, units
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks

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
        put(classifier, load_file(adapters / f"{unit.style}.safetensors"))
        say(f"{unit.style}: Jacobians of {len(dealt.train) + len(dealt.pool) + len(dealt.test)} rows")
        write_outputs(classifier, dealt, unit.folder, say)


def gathered(unit: Unit) -> bool:
    """Return whether a unit's arrays are whole: ``outputs`` is written last."""
    return (unit.folder / "outputs.safetensors").is_file()


def write_outputs(classifier: Classifier, dealt: Dealt, folder: Path, say: Say) -> None:
    """Write what one adapter gives for the training, pool and test rows: outputs, last states, Gram matrices."""
    examples = [*dealt.train, *dealt.pool, *dealt.test]
    count, contrasts = len(examples), classifier.class_count - 1
    left = len(dealt.train) + len(dealt.pool)
    model = classifier.model
    model.eval()
    blocks = covered_blocks(model, classifier.readout)
    logits = torch.zeros(count, contrasts + 1)
    mask = torch.zeros(count, contrasts + 1, dtype=torch.bool)
    states = torch.zeros(0)
    started = time.monotonic()
    with jacobian_store(folder / "jacobians", blocks, count, contrasts) as store:
        for number, (index, batch) in enumerate(classifier.batched(examples, _BATCH)):
            found = contrast_jacobians(model, batch, classifier.readout, blocks, sums=False)
            store.write(index, found)
            states = states if len(states) else torch.zeros(count, found.hidden.shape[1])
            logits[index], mask[index] = found.logits.float(), batch.class_mask
            states[index] = found.hidden.float()
            if number % 20 == 0:
                say(f"batch {number}, {time.monotonic() - started:.0f} s")
        say(f"Jacobians took {time.monotonic() - started:.0f} s")
        with products_of_bfloat16():
            for subset, gram, own in store.grams(left):
                write_tensors(folder / f"gram.{subset}.safetensors", {"gram": gram, "test_diagonal": own})
                say(f"Gram matrix of {subset} after {time.monotonic() - started:.0f} s")
    outputs = {}
    places = {"train": slice(len(dealt.train)), "pool": slice(len(dealt.train), left), "test": slice(left, None)}
    for split, place in places.items():
        outputs[f"{split}.logits"], outputs[f"{split}.class_mask"] = logits[place], mask[place]
        outputs[f"{split}.states"] = states[place]
        outputs[f"{split}.labels"] = torch.tensor([e.label for e in examples[place]])
    outputs["draws"] = torch.tensor(dealt.draws)
    write_tensors(folder / "outputs.safetensors", outputs)
