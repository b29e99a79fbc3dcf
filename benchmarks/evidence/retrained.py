"""What the calibration labels are worth as training rows: an adapter trained on both, of the first calibration draw.

No label is left to fit its temperature. The second draw's do, which no other method sees: retraining is judged by
more labels than what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import put, train
from benchmarks.evidence.passes import forward_logits
from benchmarks.evidence.plan import STYLES, TRAINED_DRAW, Training, Unit
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS
from laplora.files import write_tensors
from laplora.prompts.examples import Example

#: The calibration draw whose labels fit the temperature.
_FURTHER = 1


def all_rows(training: Training, dealt: Dealt) -> list[Example]:
    """Return the rows that train, and those of the first calibration draw."""
    return [*dealt.train, *(dealt.pool[place] for place in dealt.draws[TRAINED_DRAW])]


def run_retrained(training: Training, data: Path, say: Callable[[str], None]) -> None:
    """Train on all rows, and write ``retrained`` of both units; what is there stays."""
    wanted = [Unit(training, style) for style in STYLES]
    if all((unit.folder / "retrained.safetensors").is_file() for unit in wanted):
        return
    dealt, folder = deal(training, data), training.folder / "retrained"
    rows = all_rows(training, dealt)
    say(f"training on all {len(rows)} rows")
    classifier = train(TASKS[training.task], rows, training.seed, folder, say, swag=False)
    further = sorted(set(dealt.draws[_FURTHER]) - set(dealt.draws[TRAINED_DRAW]))
    for unit in wanted:
        put(classifier, load_file(folder / f"{unit.style}.safetensors"))
        logits = {
            "further": forward_logits(classifier, [dealt.pool[place] for place in further]),
            "test": forward_logits(classifier, dealt.test),
        }
        write_tensors(unit.folder / "retrained.safetensors", logits | {"places": torch.tensor(further)})
