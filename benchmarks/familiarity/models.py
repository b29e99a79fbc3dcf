"""The states of a home's model on texts, in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from laplora.classifier import Classifier
from laplora.jacobians.states import StateTape, decoder_layers
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch

_BATCH = 16


@dataclass(frozen=True)
class Shown:
    """The states of some texts in a forward pass.

    Attributes:
        hidden: (rows, layers, hidden) float32, the mean over the tokens that every prompt ends in, after every layer;
            last: at the last token; logits: (rows, classes).
    """

    hidden: torch.Tensor
    last: torch.Tensor
    logits: torch.Tensor


def shown(classifier: Classifier, texts: Sequence[str], file: Path) -> Shown:
    """Return what forward passes show of texts, kept in a file."""
    if file.is_file():
        return Shown(**load_file(file))
    model, layers = classifier.model, range(len(decoder_layers(classifier.model)))
    examples = [Example(str(i), {"text": text}, 0, classifier.class_count) for i, text in enumerate(texts)]

    @torch.no_grad()
    def states(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask = batch.attention_mask
        with StateTape(model, layers, mask, classifier.ending_tokens) as ending, StateTape(model, layers, mask) as last:
            logits = classifier.readout.scores(model, batch).logits.float()
        return ending.states(logits).hidden, last.states(logits).hidden, logits

    parts, order = classifier.over_batches(examples, _BATCH, states)
    hidden, at_last, values = (torch.cat(part)[order].contiguous() for part in zip(*parts, strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"hidden": hidden, "last": at_last, "logits": values}, file)
    return Shown(hidden, at_last, values)
