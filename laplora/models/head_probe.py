"""Refusing sequence classification models whose head laplora would read otherwise than they do, on one short batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.models.classifier_head import head_logits, head_side, head_state, output_layer
from laplora.models.probe import PADDING_TOLERANCE, probe_batch, runs_on_tokens
from laplora.models.readout import base_of
from laplora.prompts.rows import Batch


def check_head(model: Any) -> None:
    """Compare the head's last linear with the model's own logits, and a padded row with itself alone.

    On the way the linear's output is replaced by numbers from -100 to 100, so that a cap or a factor above it shows.

    Raises:
        ModelError: no plain linear head; a model that does not run on tokens alone, answers a padded row otherwise,
            gives NaN or infinity, or does more to its logits than the linear.
    """
    kind, (path, layer) = type(base_of(model)).__name__, output_layer(model)
    side = head_side(model)
    batch = probe_batch(model, side=side)
    real = batch.attention_mask[1].bool()
    positions = None if batch.position_ids is None else batch.position_ids[1:, real]
    alone = Batch(batch.input_ids[1:, real], batch.attention_mask[1:, real], positions, batch.class_mask[1:])
    given = torch.linspace(-100, 100, layer.out_features, device=layer.weight.device).to(layer.weight.dtype)

    def replace(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return given.expand_as(output)

    with torch.no_grad(), runs_on_tokens(model):
        padded, state = head_state(model, batch)[1:].double(), head_state(model, alone).double()
        ours, theirs = head_logits(layer, head_state(model, alone)), model(**alone.inputs).logits
        with layer.register_forward_hook(replace):
            logits = model(**alone.inputs).logits
    if not bool(padded.isfinite().all() and state.isfinite().all()):
        raise ModelError(
            f"{kind} gives NaN or infinity on ordinary tokens: its weights hold such, or overflow in their format"
        )
    tolerance = PADDING_TOLERANCE.get(layer.weight.dtype, 1e-2)
    moved = float((padded - state).norm() / state.norm().clamp_min(1e-30))
    if moved > tolerance:
        raise ModelError(
            f"{kind} answers otherwise where a row is padded on the {side}: what {path} sees moves by {moved:.2g} of "
            "its norm. It ignores attention_mask, or reads its head elsewhere: use another base model"
        )
    gap = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30))
    if gap > tolerance or not torch.equal(logits[0].to(given), given):
        raise ModelError(
            f"{kind} does more to its logits than {path}, or gives it another state than the one at the last token: "
            "use another base model"
        )
