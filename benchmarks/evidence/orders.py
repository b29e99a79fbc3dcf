"""A question with options asked a second time, its options in reverse: the same adapter, two members.

Every option then stands at two places, the first at the first and the last. The answers are brought back to the
user's order before anything else is done with them. A temperature is of both together, fitted on the draw's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import load_classifier, put, trained_weights
from benchmarks.evidence.passes import forward_logits
from benchmarks.evidence.plan import Training, units
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.versions import has_members, members_path
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.fitting.reversed_choices import in_reverse
from laplora.prompts.examples import Example
from laplora.prompts.option_order import restore_logits


def run_orders(training: Training, data: Path, say: Callable[[str], None]) -> None:
    """Write each unit's ``members.orders`` for the pool and the test rows; nothing where rows have no options."""
    wanted = [unit for unit in units(training) if not has_members(unit.folder, "orders")]
    if not wanted:
        return
    dealt = deal(training, data)
    if "choices" not in dealt.test[0].fields:
        return
    classifier = load_classifier(TASKS[training.task])
    for unit in wanted:
        put(classifier, trained_weights(unit))
        outputs = load_file(unit.folder / "outputs.safetensors")
        say(f"{unit.style}: options in reverse")
        logits = {
            split: torch.stack([outputs[f"{split}.logits"], reversed_logits(classifier, rows)])
            for split, rows in (("pool", dealt.pool), ("test", dealt.test))
        }
        write_tensors(members_path(unit.folder, "orders"), logits)


def reversed_logits(classifier: Classifier, rows: Sequence[Example]) -> torch.Tensor:
    """Return (rows, classes) float32 logits in the user's order, of prompts with the options in reverse."""
    return restore_logits(forward_logits(classifier, in_reverse(rows)), [row.class_count for row in rows])
