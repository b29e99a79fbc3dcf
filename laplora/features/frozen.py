"""States of the base without its adapter, pooled over a prompt's tokens, at several layers: what a head reads.

Which pooling is better depends on the base: SmolLM2 wants means, Qwen2.5 last tokens. So each is a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from laplora.classifier import Classifier, frozen
from laplora.errors import NonFiniteError
from laplora.features.layers import body_of, noted_layers
from laplora.jacobians.states import last_real
from laplora.linearised import class_log_probs
from laplora.models.classifier_head import is_adapted
from laplora.models.lora import is_classifier
from laplora.models.readout import base_of
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch
from laplora.prompts.token_roles import AFTER, FIELD, encode_with_roles
from laplora.readouts.no_answer import NoAnswer


@dataclass(frozen=True)
class FrozenStates:
    """Forward passes of the base without adapter, one a row, on the CPU.

    Attributes:
        blocks: by name (rows, hidden) float32, at each layer L, counted from 1: ``fields.L``, the mean over the tokens
            of the fields' own texts; of decoders ``after.L``, that over the template's words after the last field, and
            ``last.L``, at the last token; of encoders ``first.L``, at the first token. The last layer's states are
            after the final norm.
        logits: (rows, classes), of the same passes; None where they were not wanted or the base has no answer.
        class_mask: (rows, classes) bool.
    """

    blocks: dict[str, torch.Tensor]
    logits: torch.Tensor | None
    class_mask: torch.Tensor

    @property
    def zero_shot(self) -> torch.Tensor | None:
        """The base's own answer, (rows, classes) float64 log probabilities; of a head without adapter the head's."""
        return None if self.logits is None else class_log_probs(self.logits, self.class_mask)


def frozen_states(
    classifier: Classifier,
    examples: Sequence[Example],
    batch_size: int,
    *,
    answer: bool = True,
    track: Callable[[Sequence[list[int]]], Iterator[list[int]]] = iter,
) -> FrozenStates:
    """Return the states of examples, in order, by one forward pass each. A prompt that is too long is cut.

    Where no token of a row is a field's, as of a prompt whose fields were cut away, ``fields.L`` is the mean over all
    its tokens; where none is after them, ``after.L`` is that of the last token.

    Args:
        answer: whether the pass also gives logits. Label sequences then run their labels' tokens too.
        track: of ``Classifier.over_batches``, as a bar of progress.

    Raises:
        InvalidInputError: an input that the template does not take.
        ModelError: a model whose layers are in no list, or give no (batch, tokens, hidden) states.
        NonFiniteError: states with NaN or infinity.
    """
    encoded = [
        encode_with_roles(
            classifier.tokenizer,
            classifier.template,
            example.fields,
            classifier.labels,
            max_tokens=classifier.max_tokens,
            bounds=classifier.token_bounds,
            side=classifier.readout.side,
        )
        for example in examples
    ]
    roles = [of_row for _, of_row in encoded]
    model, readout = classifier.model, classifier.readout
    poolings: tuple[str, ...] = ("fields", "first") if readout.side == "right" else ("fields", "after", "last")
    if not classifier.template.ends_alike:
        poolings = tuple(name for name in poolings if name != "after")
    # Without its adapter a classifier's head is the one that it started from.
    untrained = is_adapted(model) and is_classifier(base_of(model))
    answers = answer and not untrained and not isinstance(readout, NoAnswer)
    options = {"use_cache": False} if readout.side == "left" else {}

    def passed(batch: Batch, index: list[int]) -> FrozenStates:
        weights = _pooling_weights([roles[i] for i in index], batch.attention_mask, poolings)
        pooled = {name: dict[int, torch.Tensor]() for name in weights}

        def note(number: int, hidden: torch.Tensor) -> None:
            # Of a prompt with several texts behind it, in as many copies: its first copy, without the texts.
            hidden = hidden[:: len(hidden) // len(batch), : batch.input_ids.shape[1]]
            # What is at padding may be anything, NaN too.
            hidden = hidden.masked_fill(~batch.attention_mask.to(hidden.device).bool()[:, :, None], 0)
            for name, of_tokens in weights.items():
                pooled[name][number] = torch.einsum("bt,bth->bh", of_tokens.to(hidden), hidden).float().cpu()

        with noted_layers(model, note):
            logits = readout.scores(model, batch).logits.cpu() if answers else None
            if logits is None:
                body_of(model)(**batch.inputs, **options)
        blocks = {f"{name}.{number}": block for name, layers in pooled.items() for number, block in layers.items()}
        return FrozenStates(blocks, logits, batch.class_mask.cpu())

    with frozen(model):
        parts, order = classifier.over_rows([row for row, _ in encoded], batch_size, passed, track)
    blocks = {name: torch.cat([part.blocks[name] for part in parts])[order] for name in parts[0].blocks}
    if odd := [name for name, block in blocks.items() if not block.isfinite().all()]:
        raise NonFiniteError(f"the base's states {odd[0]} hold NaN or infinity: load the base in bfloat16 or float32")
    logits = torch.cat([part.logits for part in parts])[order] if answers else None  # type: ignore[misc]
    return FrozenStates(blocks, logits, torch.cat([part.class_mask for part in parts])[order])


def _pooling_weights(
    roles: Sequence[Sequence[int]], attention_mask: torch.Tensor, poolings: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return by pooling (batch, tokens) float32 weights, which sum to 1 over each row's real tokens.

    Args:
        roles: of each row's real tokens, of ``laplora.prompts.token_roles``.
        attention_mask: (batch, tokens), on either side padded.
    """
    real = attention_mask.bool().cpu()
    of_token = torch.full(real.shape, -1)
    of_token[real] = torch.tensor([role for of_row in roles for role in of_row])  # both go row by row
    places = torch.arange(real.shape[1])
    last = last_real(attention_mask.cpu())[:, None] == places
    shown = {"fields": of_token == FIELD, "after": of_token == AFTER, "last": last, "first": real & (places == 0)}
    weights = {}
    for name in poolings:
        tokens = shown[name]
        tokens = torch.where(tokens.any(1, keepdim=True), tokens, real if name == "fields" else last)
        weights[name] = tokens.float() / tokens.sum(1, keepdim=True)
    return weights
