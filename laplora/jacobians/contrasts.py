"""Exact per-example Jacobians of the class logits with respect to the weights that were trained.

Examples of a batch do not interact, so one backward pass of ``sum_n q_c^T f(x_n)`` gives, at each LoRA linear, the
gradient ``delta`` (batch, tokens, out) of every example at once. With the linear's input ``x`` (batch, tokens, in) an
example's Jacobian is ``delta^T x`` summed over tokens. For decoders like Llama's the pass is written out
(``laplora.jacobians.reverse``). For others torch differentiates with respect to activations, contrast by contrast. The
Jacobian of a linear head alone is its input: there is no backward pass at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from laplora.errors import ModelError, warn
from laplora.jacobians.blocks import (
    Block,
    BlockJacobian,
    Choose,
    ContrastJacobians,
    Directions,
    block_jacobian,
    with_bias,
)
from laplora.jacobians.decoder_forms import DecoderForm, decoder_form
from laplora.jacobians.reverse import DecoderTape
from laplora.jacobians.tape import ActivationTape
from laplora.linearised import directions_of
from laplora.models.classifier_head import head_block, head_linear, is_adapted
from laplora.models.lora import is_classifier, lora_layers, lora_of
from laplora.models.probe import is_of_the_device, probe_batch
from laplora.models.readout import base_of, head_name
from laplora.prompts.rows import Batch
from laplora.readouts.base import ClassScores, ReadOut
from laplora.readouts.label_tokens import LabelTokens, as_readout

#: How far the Jacobians of the written-out reverse pass may be from automatic ones: the norm of a block's difference
#: over that of the block. Both round in the number format: 0.04 was seen in bfloat16 (docs/lab-notes.md). The norms of
#: a float64 model are float32 in transformers.
REVERSE_TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.03, torch.float32: 1e-3, torch.float64: 1e-5}


def find_blocks(model: nn.Module, class_count: int) -> tuple[Block, ...]:
    """Return every LoRA weight matrix of a PEFT model, in module order, A before B.

    ``lora_B`` of ``lm_head`` has the rows of the ``class_count`` label tokens alone.
    """
    head = None if is_classifier(base_of(model)) else head_name(model)
    blocks: list[Block] = []
    for name, layer in lora_layers(model).items():
        lora = lora_of(layer)
        a, b = lora.down, lora.up
        wide_b = class_count if name == head else b.out_features
        blocks.append(Block(f"{name}.lora_A", "lora_A", a.in_features, a.out_features))
        blocks.append(Block(f"{name}.lora_B", "lora_B", wide_b, b.in_features))
    return tuple(blocks)


def covered_blocks(model: nn.Module, readout: ReadOut) -> tuple[Block, ...]:
    """Return every weight matrix that a posterior can cover of a model with this read-out."""
    lora = find_blocks(model, readout.class_count) if is_adapted(model) or not readout.trained else ()
    linears = [(path, head_linear(model, path)) for path in readout.trained]
    return lora + tuple(
        Block(head_block(path), "head", one.in_features + (one.bias is not None), one.out_features)
        for path, one in linears
    )


@dataclass(frozen=True, eq=False)
class ReversePass:
    """How a model's Jacobians are computed, and why.

    ``form`` is of the decoder whose pass is written out; None where no pass is, or a head alone is trained.
    """

    kind: Literal["written_out", "automatic"]
    reason: str
    form: DecoderForm | None


#: Makes a block's Jacobians of its side, its linear's inputs, its output gradients, the mask of what ran, and how many
#: runs a row has in it.
Gather = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor, int], BlockJacobian]
#: By model: decided at its first Jacobians, which are computed before any answer.
_DECIDED: WeakKeyDictionary[nn.Module, ReversePass] = WeakKeyDictionary()


def reverse_pass(model: Any, readout: ReadOut | None = None) -> ReversePass:
    """Return how a model's Jacobians are computed, decided at the first call.

    If the written-out pass covers the decoder, it is compared with automatic differentiation on one short batch; a
    warning says why it is not used.

    Args:
        readout: to compare by; None: label tokens of a causal language model.
    """
    if readout is not None and len(readout.trained) == 1 and not is_adapted(model):
        return ReversePass("written_out", "a linear head alone is trained: its Jacobian is its input", None)
    if readout is not None and not readout.reads_last_token:
        kind = type(readout).__name__
        return ReversePass("automatic", f"a read-out of the kind {kind} sees more than the last token's state", None)
    if model not in _DECIDED:
        _DECIDED[model] = _decide(model, readout)
    return _DECIDED[model]


def _decide(model: Any, readout: ReadOut | None) -> ReversePass:
    base = base_of(model)
    form = decoder_form(base)
    if form is None:
        return ReversePass("automatic", f"the reverse pass of {type(base).__name__} is not written out", None)
    written = ReversePass("written_out", "as automatic differentiation gave it on one batch", form)
    try:
        fault = _difference(model, written, readout)
    except (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, ModelError) as error:
        if is_of_the_device(error):
            raise
        fault = f"it raised {type(error).__name__}"
    if fault is None:
        return written
    reason = f"the written-out reverse pass of {type(base).__name__} is not used: {fault}"
    warn(f"{reason}. Jacobians come from automatic differentiation, which is slower")
    return ReversePass("automatic", reason, None)


def _difference(model: Any, written: ReversePass, readout: ReadOut | None) -> str | None:
    """Return where the two passes differ by more than rounding, or None; rows of two lengths, one with padding."""
    batch = probe_batch(model) if readout is None else probe_batch(model, readout.class_count, readout.side)
    readout = readout or LabelTokens(tuple(batch.input_ids[0, :3].tolist()))
    few = directions_of(readout.likelihood, readout.class_count)[:2, None]
    blocks, gather = covered_blocks(model, readout), partial(block_jacobian, sums=True)

    def choose(_logits: torch.Tensor, _class_mask: torch.Tensor) -> Directions:
        return Directions(few)

    torchs = _automatic(model, batch, readout, blocks, gather, choose)
    mine = _written_out(model, batch, readout, blocks, gather, choose, written)
    if mine is None:
        return "the read-out sees more than the final hidden state"
    sizes = [float(other.jacobian.double().norm()) for other in torchs.blocks]
    if not all(math.isfinite(size) for size in sizes):  # such Jacobians raise where they are used
        return None
    floor = 1e-3 * max(sizes)  # a block that no row reaches has rounding alone
    tolerance = REVERSE_TOLERANCE[mine.hidden.dtype]
    for block, one, other, size in zip(blocks, mine.blocks, torchs.blocks, sizes, strict=True):
        theirs = other.jacobian.to(one.jacobian.device)  # of a head: noted where its logits are, or where it is itself
        gap = float((one.jacobian.double() - theirs.double()).norm())
        if not gap <= tolerance * max(size, floor):  # NaN is no match either
            share = gap / max(size, floor, 1e-30)
            return f"{block.name} differs from automatic differentiation by {share:.2g} of its norm"
    return None


def contrast_jacobians(
    model: Any,
    batch: Batch,
    readout: ReadOut | Sequence[int],
    blocks: Sequence[Block],
    *,
    sums: bool = True,
    automatic: bool = False,
    choose: Choose | None = None,
) -> ContrastJacobians:
    """Return logits and the exact Jacobians of their contrasts, for every block: a forward and C-1 backward passes.

    Args:
        batch: on the model's device.
        readout: or, of label tokens, the token of each class.
        blocks: those of ``covered_blocks`` to compute.
        sums: whether to give mean inputs and summed gradients too, for a fit.
        automatic: differentiate automatically even where the reverse pass is written out; to compare the two.
        choose: other directions than the likelihood's contrasts.

    Raises:
        ModelError: a model in training mode; an adapted module that runs twice, or on whose output no logit depends.
    """
    if model.training or base_of(model).training:
        raise ModelError(
            "Jacobians are those of a model without dropout, this one is in training mode: call model.eval()"
        )
    readout = as_readout(readout)
    gather = partial(block_jacobian, sums=sums)
    if not automatic and (how := reverse_pass(model, readout)).kind == "written_out":
        jacobians = _written_out(model, batch, readout, blocks, gather, choose, how)
        if jacobians is not None:
            return jacobians
    return _automatic(model, batch, readout, blocks, gather, choose)


def _directions(readout: ReadOut, scores: ClassScores, batch: Batch, choose: Choose | None) -> Directions:
    if choose is not None:
        return choose(scores.logits.detach(), batch.class_mask)
    return Directions(directions_of(readout.likelihood, readout.class_count, scores.logits.dtype)[:, None])


def _written_out(
    model: Any,
    batch: Batch,
    readout: ReadOut,
    blocks: Sequence[Block],
    gather: Gather,
    choose: Choose | None,
    how: ReversePass,
) -> ContrastJacobians | None:
    """Return the Jacobians by the written-out pass; None where the read-out sees more than the final hidden state."""
    wanted = {block.name for block in blocks}
    by_name: dict[str, BlockJacobian] = {}
    with torch.no_grad(), nullcontext() if how.form is None else DecoderTape(how.form, wanted) as tape:
        scores = readout.scores(model, batch)
        chosen = _directions(readout, scores, batch, choose)
        head = readout.gradient(model, scores, chosen.vectors)
        if head is None:
            return None
        for linear in head.parts:
            if linear.block in wanted:
                by_name[linear.block] = gather(linear.side, linear.inputs, linear.gradients, batch.attention_mask, 1)
        layers = () if tape is None else tape.reverse(head.hidden.expand(-1, len(scores.hidden), -1))
        for path, part in layers:
            for side, inputs, deltas in (("lora_A", part.inputs, part.to_a), ("lora_B", part.low, part.to_b)):
                if (name := f"{path}.{side}") in wanted:
                    assert inputs is not None
                    by_name[name] = gather(side, inputs, deltas, batch.attention_mask, 1)
    in_order = tuple(by_name[block.name] for block in blocks)
    vectors = None if choose is None else chosen.vectors
    return ContrastJacobians(scores.logits, scores.hidden, in_order, readout.likelihood, chosen.weights, vectors)


def _automatic(
    model: Any, batch: Batch, readout: ReadOut, blocks: Sequence[Block], gather: Gather, choose: Choose | None
) -> ContrastJacobians:
    recorded = [head_block(path) for path in readout.trained[-1:]]
    with torch.enable_grad(), ActivationTape(model, blocks, recorded) as tape:
        scores = readout.scores(model, batch, tape.record)
        chosen = _directions(readout, scores, batch, choose)
        absent = [b.name for b in blocks if b.name not in tape.records]
        if absent:
            raise ModelError(f"{absent[0]} is adapted and did not run: leave its module out of adapter.targets")
        records = [tape.records[b.name] for b in blocks]
        outputs = [output for _, output in records]
        summed = (chosen.vectors.to(scores.logits) * scores.logits).sum((1, 2))
        gradients = [
            torch.autograd.grad(summed[c], outputs, retain_graph=c + 1 < summed.numel(), allow_unused=True)
            for c in range(summed.numel())
        ]
    unused = [block.name for block, gradient in zip(blocks, gradients[0], strict=True) if gradient is None]
    if unused:
        raise ModelError(f"{unused[0]} is adapted and no logit depends on it: leave its module out of adapter.targets")
    runs = len(scores.attention_mask) // len(scores.logits)
    with torch.no_grad():
        result = tuple(
            gather(
                block.group,
                with_bias(block, inputs),
                torch.stack([g[i] for g in gradients]),
                scores.attention_mask,
                runs,
            )
            for i, (block, (inputs, _)) in enumerate(zip(blocks, records, strict=True))
        )
    logits, hidden = scores.logits.detach(), scores.hidden.detach()
    vectors = None if choose is None else chosen.vectors
    return ContrastJacobians(logits, hidden, result, readout.likelihood, chosen.weights, vectors)
