"""Label tokens: each label is one token, and its logit is that of the language model at the last real token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.linearised import Likelihood
from laplora.models.lora import lora_of, runs_lora
from laplora.models.readout import head_name, label_logits, label_mass, last_hidden, logit_transform, output_head
from laplora.prompts.rows import Batch, Side
from laplora.readouts.base import ClassScores, HeadGradient, LinearGradient, ReadOut, Record


@dataclass(frozen=True)
class LabelText:
    """One label is right, and its text follows the prompt; ``token_ids`` has an entry a label, in their order."""

    token_ids: Sequence[object]

    @property
    def class_count(self) -> int:
        return len(self.token_ids)

    @property
    def likelihood(self) -> Likelihood:
        return "categorical"

    @property
    def side(self) -> Side:
        """The start of a row: the labels follow its last token."""
        return "left"

    @property
    def trained(self) -> tuple[str, ...]:
        """None: an adapted ``lm_head`` is LoRA's."""
        return ()


@dataclass(frozen=True)
class LabelTokens(LabelText):
    """The read-out of a causal language model by one token a label; ``token_ids`` in the labels' order."""

    token_ids: tuple[int, ...]

    @property
    def reads_last_token(self) -> bool:
        """They are the output embedding's rows at the last token."""
        return True

    def scores(self, model: Any, batch: Batch, record: Record | None = None) -> ClassScores:
        """Return the logits of the label tokens; an adapted ``lm_head``'s ``lora_B`` is recorded by its label rows."""
        hidden = last_hidden(model, batch)
        return ClassScores(label_logits(model, hidden, self.token_ids, record), hidden, batch.attention_mask)

    def label_mass(self, model: Any, hidden: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        return label_mass(model, hidden, self.token_ids, class_mask)

    def gradient(self, model: Any, scores: ClassScores, directions: torch.Tensor) -> HeadGradient:
        """Return the gradients at the final hidden state, and those of an adapted ``lm_head``."""
        head = output_head(model)
        plain = getattr(head, "base_layer", head)
        hidden = scores.hidden.to(plain.weight.device)
        rows = torch.tensor(self.token_ids, device=hidden.device)
        wide = torch.promote_types(torch.float32, hidden.dtype)
        directions = directions.to(hidden.device, wide)
        transform = logit_transform(model)
        if not transform.nothing:  # a soft cap has another slope at each row's logits
            directions = directions * transform.slope(scores.logits.to(hidden.device, wide))
        gradient = directions @ plain.weight[rows].to(wide)
        if not runs_lora(head):
            return HeadGradient(gradient, ())
        lora = lora_of(head)
        down, up = lora.down.weight, lora.up.weight[rows]
        to_b = directions.to(up.dtype) * lora.scaling
        to_a = to_b @ up
        inputs = hidden.to(down.dtype)
        name, batch = head_name(model), len(hidden)
        parts = (
            LinearGradient(f"{name}.lora_A", "lora_A", inputs, to_a.expand(-1, batch, -1)),
            LinearGradient(f"{name}.lora_B", "lora_B", inputs @ down.T, to_b.expand(-1, batch, -1)),
        )
        return HeadGradient(gradient + (to_a @ down).to(wide), parts)


def as_readout(readout: ReadOut | Sequence[int]) -> ReadOut:
    """Return a read-out; the token ids of labels are ``LabelTokens``."""
    return LabelTokens(tuple(readout)) if isinstance(readout, Sequence) else readout
