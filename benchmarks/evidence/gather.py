"""One forward pass over rows: what methods answer from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laplora.classifier import Classifier
from laplora.prompts.examples import Example

_BATCH = 16


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
    """The outputs of the forward passes, row by row."""

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
        return {"logits": self.logits, "class_mask": self.mask, "states": self.states}
