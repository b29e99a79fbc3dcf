"""The Jacobians of every row, which posteriors over the LoRA weights answer from; kept as Gram matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.evidence.adapters import load_classifier, put, trained_weights
from benchmarks.evidence.grams import jacobian_store, products_of_bfloat16
from benchmarks.evidence.plan import SUBSETS, Training, units
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.prompts.examples import Example

_BATCH = 16

Say = Callable[[str], None]


def run_jacobians(training: Training, data: Path, say: Say) -> None:
    """Write the Gram matrices of both units; what is there stays. A head has too many classes for them."""
    task = TASKS[training.task]
    wanted = [unit for unit in units(training) if not (unit.folder / f"gram.{SUBSETS[-1]}.safetensors").is_file()]
    if task.head or not wanted:
        return
    dealt, classifier = deal(training, data), load_classifier(task)
    for unit in wanted:
        put(classifier, trained_weights(unit))
        examples = [*dealt.train, *dealt.pool, *dealt.test]
        say(f"{unit.style}: Jacobians of {len(examples)} rows")
        _write_grams(classifier, examples, len(dealt.train) + len(dealt.pool), unit.folder, say)


def _write_grams(classifier: Classifier, examples: Sequence[Example], left: int, folder: Path, say: Say) -> None:
    """Write the Gram matrices of the first ``left`` rows with all, the largest subset's last."""
    model, started = classifier.model.eval(), time.monotonic()
    blocks = covered_blocks(model, classifier.readout)
    with jacobian_store(folder / "jacobians", blocks, len(examples), classifier.class_count - 1) as store:
        for number, (index, batch) in enumerate(classifier.batched(examples, _BATCH)):
            store.write(index, contrast_jacobians(model, batch, classifier.readout, blocks, sums=False))
            if number % 20 == 0:
                say(f"batch {number}, {time.monotonic() - started:.0f} s")
        with products_of_bfloat16():
            for subset, gram, diagonal in store.grams(left):
                write_tensors(folder / f"gram.{subset}.safetensors", {"gram": gram, "test_diagonal": diagonal})
                say(f"Gram matrix of {subset} after {time.monotonic() - started:.0f} s")
