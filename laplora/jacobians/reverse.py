"""The reverse pass of a decoder like Llama's, written out: gradients of activations only, all contrasts together.

The forward pass runs without a graph, and hooks keep what the reverse pass needs. Every weight is read, and every 4-bit
weight expanded, once for all contrasts. The last layer is computed at the last token alone, which the logits read.
``decoder_forms`` says which decoders are covered, ``layer_reverse`` has the pass of one layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.jacobians.decoder_forms import DecoderForm, LayerForm
from laplora.jacobians.layer_reverse import Adapted, Kept, LayerReverse, norm_gradient
from laplora.models.lora import lora_of
from laplora.models.spread import device_of


class DecoderTape(ExitStack[None]):
    """Keeps what the reverse pass needs of one forward pass; a context manager.

    Args:
        form: of the model's decoder.
        wanted: names of the blocks whose Jacobians are wanted; those outside the layers are ignored.

    Raises:
        ModelError: a layer that ran twice in one forward pass, or with another attention than at load.
    """

    def __init__(self, form: DecoderForm, wanted: Collection[str]) -> None:
        super().__init__()
        self._form = form
        self._wanted = frozenset(wanted)
        linears = {block.rpartition(".")[0] for block in wanted}
        self._kept: list[Kept] = []
        self._last: torch.Tensor | None = None
        count = len(form.layers)
        with_wanted = (
            number
            for number, layer in enumerate(form.layers)
            if any(f"{form.prefix}.{number}.{name}" in linears for name in layer.linears)
        )
        #: The lowest layer with a wanted Jacobian; nothing below it is kept or differentiated.
        self._lowest = next(with_wanted, count)

    def __enter__(self) -> Self:
        self.enter_context(self._form.norm.module.register_forward_pre_hook(self._keep_last))
        for number in range(self._lowest, len(self._form.layers)):
            self._watch(number, self._form.layers[number])
        return self

    def _keep_last(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._last = inputs[0][:, -1:]

    def _watch(self, number: int, layer: LayerForm) -> None:
        def enter(_module: nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
            if len(self._kept) != number - self._lowest:
                raise ModelError(f"layer {number} ran out of turn; shared or checkpointed layers are not covered")
            mask = options["attention_mask"]
            if mask is not None and mask.dtype != torch.bool:
                raise ModelError("the model's attention is another one than at load: load it again")
            mask, rotary = (_on(layer, given) for given in (mask, options["position_embeddings"]))
            self._kept.append(Kept(inputs[0].dtype, mask, rotary))

        def before(place: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._kept[-1].normed[place] = inputs[0]

        def around(name: str, _m: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if name in (*layer.attention, *layer.gate_up):
                self._kept[-1].outputs[name] = output
            if f"{self._form.prefix}.{number}.{name}.lora_A" in self._wanted:
                # The base's input: each adapter would have a copy of it in a wider format.
                self._kept[-1].inputs[name] = inputs[0]

        def low(name: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._kept[-1].low[name] = output

        self.enter_context(layer.module.register_forward_pre_hook(enter, with_kwargs=True))
        for place, norm in layer.norms.items():
            self.enter_context(norm.module.register_forward_pre_hook(partial(before, place)))
        for name, linear in layer.linears.items():
            self.enter_context(linear.register_forward_hook(partial(around, name)))
            if f"{self._form.prefix}.{number}.{name}.lora_B" in self._wanted:
                self.enter_context(lora_of(linear).down.register_forward_hook(partial(low, name)))

    def reverse(self, gradient: torch.Tensor) -> Iterator[tuple[str, Adapted]]:
        """Yield every wanted linear's path with its Jacobians' parts, from the last layer down, and free activations.

        Args:
            gradient: (contrasts, batch, hidden), with respect to the final hidden state at the last token.
        """
        assert self._last is not None
        where = self._form.norm.module.weight.device
        upper = norm_gradient(self._form.norm, self._last.to(where), gradient[:, :, None].to(where))
        self._last = None  # a view of every token's state
        for number in range(len(self._form.layers) - 1, self._lowest - 1, -1):
            path, layer = f"{self._form.prefix}.{number}", self._form.layers[number]
            step = LayerReverse(layer, self._kept.pop(), path, self._wanted)
            upper = step.run(upper.to(device_of(layer.module)), stop=number == self._lowest)
            yield from step.adapted


def _on(layer: LayerForm, given: Any) -> Any:
    """Return a tensor, a tuple of them or None on a layer's device: hooks see what comes before accelerate moves it."""
    if isinstance(given, tuple):
        return tuple(_on(layer, one) for one in given)
    return None if given is None else given.to(device_of(layer.module))
