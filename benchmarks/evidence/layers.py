"""The states after every third layer, of the last token: what distances to the training rows are measured in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.evidence.adapters import load_classifier, put, trained_weights
from benchmarks.evidence.plan import Training, units
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.jacobians.states import StateTape
from laplora.models.decoder_layers import decoder_layers
from laplora.prompts.examples import Example

_BATCH = 32
_EVERY = 3


def run_layers(training: Training, data: Path, say: Callable[[str], None]) -> None:
    """Write ``layers`` of both units, (rows, layers, width) float16 of each split; what is there stays."""
    wanted = [unit for unit in units(training) if not (unit.folder / "layers.safetensors").is_file()]
    if not wanted:
        return
    dealt, classifier = deal(training, data), load_classifier(TASKS[training.task])
    for unit in wanted:
        put(classifier, trained_weights(unit))
        say(f"{unit.style}: layers")
        splits = {"train": dealt.train, "pool": dealt.pool, "test": dealt.test}
        states = {name: states_after_layers(classifier, rows) for name, rows in splits.items()}
        write_tensors(unit.folder / "layers.safetensors", states)


@torch.no_grad()
def states_after_layers(classifier: Classifier, examples: Sequence[Example]) -> torch.Tensor:
    """Return (rows, layers, width) float16, of forward passes in evaluation mode."""
    model = classifier.model.eval()
    layers = range(_EVERY - 1, len(decoder_layers(model)), _EVERY)
    states = [torch.empty(0)] * len(examples)
    for index, batch in classifier.batched(examples, _BATCH):
        with StateTape(model, layers, batch.attention_mask) as tape:
            logits = classifier.readout.scores(model, batch).logits
        for row, hidden in zip(index, tape.states(logits).hidden, strict=True):
            states[row] = hidden.half()
    return torch.stack(states)
