"""Logits of a batch under several adapters of one base model, by as few passes as its memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from laplora.predictive.lora_weights import Weights, adapter_linears, lora_parameters, side_by_side
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut
from laplora.readouts.label_sequences import model_tokens

#: Most tokens, padding included, that run side by side: the adapters run over larger batches in several passes, down to
#: one each. On a CPU 768 tokens gained and 1,280 did not (docs/lab-notes.md).
SIDE_BY_SIDE_TOKENS = 1024


@torch.no_grad()
def adapters_logits(model: Any, readout: ReadOut, adapters: Sequence[Weights], batch: Batch) -> torch.Tensor:
    """Return (adapters, batch, classes) logits, nats, float64 on the CPU.

    Args:
        adapters: what takes the place of the model's own weights in each; nothing for the attached adapter itself.

    Raises ConfigError as ``side_by_side``.
    """
    parameters, linears = lora_parameters(model), adapter_linears(model)
    rows, tokens = batch.input_ids.shape
    size = max(1, SIDE_BY_SIDE_TOKENS // (rows * model_tokens(model, readout, tokens)))
    found = []
    for places in torch.arange(len(adapters)).tensor_split(-(-len(adapters) // size)):
        group = [adapters[i] for i in places.tolist()]
        with side_by_side(parameters, linears, group):
            logits = readout.scores(model, batch.repeated(len(group))).logits
        found.append(logits.double().cpu().view(len(group), rows, -1))
    return torch.cat(found)
