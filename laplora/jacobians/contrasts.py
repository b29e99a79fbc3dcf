"""Exact per-example Jacobians of the class logits with respect to LoRA weights.

Examples of a batch do not interact, so one backward pass of ``sum_n q_c^T f(x_n)`` gives, at each LoRA linear, the
gradient ``delta`` (batch, tokens, out) of every example at once. With the linear's input ``x`` (batch, tokens, in) an
example's Jacobian is ``delta^T x`` summed over tokens. For decoders like Llama's the pass is written out
(``laplora.jacobians.reverse``). For others torch differentiates with respect to activations, contrast by contrast.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import pad

from laplora.errors import ModelError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.jacobians.reverse import Adapted, DecoderForm, DecoderTape, decoder_form
from laplora.linearised import contrasts
from laplora.models.lora import ADAPTER, lora_layers
from laplora.models.probe import probe_batch
from laplora.models.readout import head_name, label_logits, last_hidden, output_head
from laplora.prompts.rows import Batch

#: How far the Jacobians of the written-out reverse pass may be from automatic ones: the norm of a block's difference
#: over that of the block. Both round in the number format: 0.04 was seen in bfloat16 (docs/lab-notes.md). The norms of
#: a float64 model are float32 in transformers.
REVERSE_TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.03, torch.float32: 1e-3, torch.float64: 1e-5}


def find_blocks(model: nn.Module, class_count: int) -> tuple[Block, ...]:
    """Return every LoRA weight matrix of a PEFT model, in module order, A before B.

    ``lora_B`` of ``lm_head`` has the rows of the ``class_count`` label tokens alone.
    """
    head = head_name(model)
    blocks: list[Block] = []
    for name, layer in lora_layers(model).items():
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        wide_b = class_count if name == head else b.out_features
        blocks.append(Block(f"{name}.lora_A", "lora_A", a.in_features, a.out_features))
        blocks.append(Block(f"{name}.lora_B", "lora_B", wide_b, b.in_features))
    return tuple(blocks)


class ActivationTape(ExitStack[None]):
    """Records input and output of each block's linear during one forward; a context manager.

    Raises ModelError where a linear runs twice in it (shared layers, gradient checkpointing).
    """

    def __init__(self, model: Any, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.records: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._base = model.get_base_model()
        self._blocks = blocks

    def __enter__(self) -> Self:
        head = self._base.get_output_embeddings()
        for block in self._blocks:
            path = block.name.rpartition(".")[0]
            layer = self._base.get_submodule(path)
            # The head's lora_B is read at the label rows only and is no module call: label_logits records it.
            if layer is not head or block.group == "lora_A":
                linear = getattr(layer, block.group)[ADAPTER]
                self.enter_context(linear.register_forward_hook(partial(self._note, block.name)))
        return self

    def record(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs`` as a node of the graph, after noting ``(inputs, outputs)``."""
        if name in self.records:
            raise ModelError(f"{name} ran twice in one forward; shared or checkpointed layers are not covered")
        if not outputs.requires_grad:  # below the first adapter nothing needs a gradient, so the graph starts here
            outputs = outputs.detach().requires_grad_()
        self.records[name] = (inputs.detach(), outputs)
        return outputs

    def _note(self, name: str, _module: nn.Module, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
        return self.record(name, inputs[0], outputs)


@dataclass(frozen=True, eq=False)
class ReversePass:
    """How a model's Jacobians are computed, and why.

    Attributes:
        form: of the decoder whose pass is written out.
        head: path of the output embedding.
    """

    kind: Literal["written_out", "automatic"]
    reason: str
    form: DecoderForm | None
    head: str


#: Makes a block's Jacobians of its side, its linear's inputs and its output gradients.
Gather = Callable[[str, torch.Tensor, torch.Tensor], BlockJacobian]
#: Faults of the device, which say nothing of the pass.
_DEVICE_FAULTS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
#: By model: decided at its first Jacobians, which are computed before any answer.
_DECIDED: WeakKeyDictionary[nn.Module, ReversePass] = WeakKeyDictionary()


def reverse_pass(model: Any) -> ReversePass:
    """Return how a PEFT model's Jacobians are computed, decided at the first call.

    Where the written-out pass covers the decoder, it is compared with automatic differentiation on one short batch; a
    warning says why it is not used.
    """
    if model not in _DECIDED:
        _DECIDED[model] = _decide(model)
    return _DECIDED[model]


def _decide(model: Any) -> ReversePass:
    base, head = model.get_base_model(), head_name(model)
    form = decoder_form(base)
    if form is None:
        return ReversePass("automatic", f"the reverse pass of {type(base).__name__} is not written out", None, head)
    written = ReversePass("written_out", "as automatic differentiation gave it on one batch", form, head)
    try:
        fault = _difference(model, written)
    except _DEVICE_FAULTS:
        raise
    except (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, ModelError) as error:
        fault = f"it raised {type(error).__name__}"
    if fault is None:
        return written
    reason = f"the written-out reverse pass of {type(base).__name__} is not used: {fault}"
    warnings.warn(
        f"{reason}. Jacobians come from automatic differentiation, which is slower", RuntimeWarning, stacklevel=4
    )
    return ReversePass("automatic", reason, None, head)


def _difference(model: Any, written: ReversePass) -> str | None:
    """Return where the two passes differ by more than rounding, or None; rows of two lengths, one with padding."""
    batch = probe_batch(model, 3)
    labels = batch.input_ids[0, :3].tolist()
    blocks = find_blocks(model, len(labels))
    gather = partial(_block_jacobian, mask=batch.attention_mask, sums=True, tokens=False)
    torchs = _automatic(model, batch, labels, blocks, gather)
    mine = _written_out(model, batch, labels, blocks, gather, written)
    sizes = [float(other.jacobian.double().norm()) for other in torchs.blocks]
    if not all(math.isfinite(size) for size in sizes):  # such Jacobians raise where they are used
        return None
    floor = 1e-3 * max(sizes)  # a block that no row reaches has rounding alone
    tolerance = REVERSE_TOLERANCE[mine.hidden.dtype]
    for block, one, other, size in zip(blocks, mine.blocks, torchs.blocks, sizes, strict=True):
        gap = float((one.jacobian.double() - other.jacobian.double()).norm())
        if not gap <= tolerance * max(size, floor):  # NaN is no match either
            share = gap / max(size, floor, 1e-30)
            return f"{block.name} differs from automatic differentiation by {share:.2g} of its norm"
    return None


def contrast_jacobians(
    model: Any,
    batch: Batch,
    label_ids: Sequence[int],
    blocks: Sequence[Block],
    *,
    sums: bool = True,
    tokens: bool = False,
    automatic: bool = False,
) -> ContrastJacobians:
    """Return logits and the exact Jacobians of their C-1 contrasts, for every block: a forward and C-1 backward passes.

    Args:
        batch: on the model's device; label_ids: the token of each class.
        blocks: those of ``find_blocks`` to compute.
        sums: whether to give mean inputs and summed gradients too, for a fit.
        tokens: whether to keep every token's input and gradient as well.
        automatic: differentiate automatically even where the reverse pass is written out; to compare the two.

    Raises:
        ModelError: a model in training mode; an adapted module that runs twice, or on whose output no logit depends.
    """
    if model.training or model.get_base_model().training:
        raise ModelError(
            "Jacobians are those of a model without dropout, this one is in training mode: call model.eval()"
        )
    gather = partial(_block_jacobian, mask=batch.attention_mask, sums=sums or tokens, tokens=tokens)
    if not automatic and (how := reverse_pass(model)).kind == "written_out":
        return _written_out(model, batch, label_ids, blocks, gather, how)
    return _automatic(model, batch, label_ids, blocks, gather)


def _written_out(
    model: Any, batch: Batch, label_ids: Sequence[int], blocks: Sequence[Block], gather: Gather, how: ReversePass
) -> ContrastJacobians:
    assert how.form is not None
    wanted = {block.name for block in blocks}
    by_name: dict[str, BlockJacobian] = {}
    with torch.no_grad(), DecoderTape(how.form, wanted) as tape:
        hidden = last_hidden(model, batch)
        logits = label_logits(model, hidden, label_ids)
        gradient, at_head = readout_gradient(model, hidden, label_ids)
        parts = [] if at_head is None else [(how.head, at_head)]
        for path, part in chain(parts, tape.reverse(gradient.expand(-1, len(hidden), -1))):
            for side, inputs, deltas in (("lora_A", part.inputs, part.to_a), ("lora_B", part.low, part.to_b)):
                if (name := f"{path}.{side}") in wanted:
                    assert inputs is not None
                    by_name[name] = gather(side, inputs, deltas)
    return ContrastJacobians(logits, hidden, tuple(by_name[block.name] for block in blocks))


def _automatic(
    model: Any, batch: Batch, label_ids: Sequence[int], blocks: Sequence[Block], gather: Gather
) -> ContrastJacobians:
    with torch.enable_grad(), ActivationTape(model, blocks) as tape:
        hidden = last_hidden(model, batch)
        logits = label_logits(model, hidden, label_ids, tape.record)
        transform = contrasts(len(label_ids), logits.dtype).to(logits.device)
        absent = [b.name for b in blocks if b.name not in tape.records]
        if absent:
            raise ModelError(f"{absent[0]} is adapted and did not run: leave its module out of adapter.targets")
        records = [tape.records[b.name] for b in blocks]
        outputs = [output for _, output in records]
        summed = (logits @ transform).sum(0)
        gradients = [
            torch.autograd.grad(summed[c], outputs, retain_graph=c + 1 < summed.numel(), allow_unused=True)
            for c in range(summed.numel())
        ]
    unused = [block.name for block, gradient in zip(blocks, gradients[0], strict=True) if gradient is None]
    if unused:
        raise ModelError(f"{unused[0]} is adapted and no logit depends on it: leave its module out of adapter.targets")
    with torch.no_grad():
        result = tuple(
            gather(block.group, inputs, torch.stack([g[i] for g in gradients]))
            for i, (block, (inputs, _)) in enumerate(zip(blocks, records, strict=True))
        )
    return ContrastJacobians(logits.detach(), hidden.detach(), result)


def readout_gradient(model: Any, hidden: torch.Tensor, label_ids: Sequence[int]) -> tuple[torch.Tensor, Adapted | None]:
    """Return the contrasts' gradients at the final hidden state (batch, hidden), and an adapted ``lm_head``'s parts.

    Returns:
        (contrasts, 1, hidden), the same for every row, at least float32; and ``Adapted`` without a tokens axis, whose
        outputs are the label rows, or None.
    """
    head = output_head(model)
    plain = getattr(head, "base_layer", head)
    rows = torch.tensor(list(label_ids), device=hidden.device)
    wide = torch.promote_types(torch.float32, hidden.dtype)
    transform = contrasts(len(label_ids), wide).to(hidden.device).T
    gradient = (transform @ plain.weight[rows].to(wide))[:, None]
    if head is plain or head.disable_adapters:
        return gradient, None
    down, up = head.lora_A[ADAPTER].weight, head.lora_B[ADAPTER].weight[rows]
    to_b = transform.to(up.dtype)[:, None] * head.scaling[ADAPTER]
    to_a = to_b @ up
    inputs = hidden.to(down.dtype)
    parts = Adapted(inputs, inputs @ down.T, *(t.expand(-1, len(hidden), -1) for t in (to_a, to_b)))
    return gradient + (to_a @ down).to(wide), parts


def _block_jacobian(
    side: str, inputs: torch.Tensor, deltas: torch.Tensor, *, mask: torch.Tensor, sums: bool, tokens: bool
) -> BlockJacobian:
    """Return a block's Jacobians, from its linear's inputs and output gradients.

    Args:
        inputs: (batch, tokens, in), or (batch, in) at the head, which runs at the last token.
        deltas: (contrasts, batch, last tokens, out), or (contrasts, batch, out); zero at padding and at every token
            before the last ones.
        mask: (batch, tokens), 1 at real tokens.
        sums, tokens: what is returned beside the Jacobians.
    """
    if inputs.dim() == 2:
        inputs, mask, deltas = inputs[:, None], mask[:, -1:], deltas[:, :, None]
    contrasts, batch, last, out = deltas.shape
    # Pad positions have activations, and no gradient: the product needs no mask.
    recent = inputs[:, -last:].to(deltas.dtype)
    joined = deltas.permute(1, 0, 3, 2).reshape(batch, contrasts * out, last)
    jacobian = torch.bmm(joined, recent).view(batch, contrasts, out, -1)
    if side == "lora_A":  # (narrow, wide): the product is faster this way round
        jacobian = jacobian.mT
    if not sums:
        return BlockJacobian(jacobian)
    real = mask[..., None].to(deltas.dtype)
    inputs = inputs.to(deltas.dtype) * real
    return BlockJacobian(
        jacobian=jacobian,
        mean_input=inputs.sum(1) / real.sum(1),
        summed_gradient=deltas.sum(2).transpose(0, 1),
        inputs=inputs if tokens else None,
        gradients=pad(deltas.transpose(0, 1), (0, 0, inputs.shape[1] - last, 0)) if tokens else None,
        token_counts=mask.sum(1) if tokens else None,
    )
