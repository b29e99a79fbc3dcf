"""Label sequences: a label is a text of one or several tokens, and its logit is the log probability of that text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from laplora.errors import ConfigError, ModelError
from laplora.models.lora import runs_lora
from laplora.models.readout import head_name, label_logits, log_partition, output_head
from laplora.prompts.rows import Batch
from laplora.readouts.base import ClassScores, ReadOut, Record
from laplora.readouts.contexts import context_states, context_tokens
from laplora.readouts.label_tokens import LabelText
from laplora.readouts.prefix_tree import PrefixTree, prefix_tree


@dataclass(frozen=True)
class LabelSequences(LabelText):
    """The read-out of a causal language model by the text of each label.

    ``f_c = 1/L_c sum_t log p(token_t | prompt, tokens before t)``, under the softmax of the whole vocabulary. The
    division by the label's length L_c is that of Brown et al. (arXiv 2005.14165, section 2.4). For labels of one token
    each it is ``LabelTokens`` but for a shift of all logits.

    Attributes:
        token_ids: the tokens of each label after the prompt, in the labels' order. One label may begin with another.
        normalised: whether f is divided by the label's length; else it is the plain sum.
    """

    token_ids: tuple[tuple[int, ...], ...]
    normalised: bool = True

    def __post_init__(self) -> None:
        if len(set(self.token_ids)) != len(self.token_ids) or not all(self.token_ids):
            raise ConfigError(f"labels must be different sequences of one token or more, got {list(self.token_ids)}")

    @property
    def reads_last_token(self) -> bool:
        """Logits depend on states at every token of the labels."""
        return False

    @cached_property
    def tree(self) -> PrefixTree:
        """The contexts that the labels' tokens are read in."""
        return prefix_tree(self.token_ids)

    def scores(self, model: Any, batch: Batch, record: Record | None = None) -> ClassScores:
        """Return the labels' logits; ``hidden`` is their summed log probability, (batch, classes), nats.

        Raises:
            ModelError: an adapted ``lm_head``: every row of its ``lora_B`` would be in the posterior.
        """
        check_head(model)
        hidden, attention_mask = context_states(model, self.tree, batch)
        summed = self._summed(model, hidden)
        lengths = torch.tensor([len(t) for t in self.token_ids], device=summed.device, dtype=summed.dtype)
        return ClassScores(summed / lengths if self.normalised else summed, summed, attention_mask)

    def _summed(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Return the log probability of each label's text, (batch, classes), of states (batch, contexts, hidden)."""
        tree, normaliser = self.tree, log_partition(model, hidden)
        steps = torch.cat(
            [
                label_logits(model, hidden[:, place], tokens) - normaliser[:, place, None]
                for place, tokens in enumerate(tree.steps)
            ],
            1,
        )
        return steps @ self._taken.to(steps)

    @cached_property
    def _taken(self) -> torch.Tensor:
        """(steps, classes), 1 at the steps of each label's text."""
        tree = self.tree
        pairs = [(context, token) for context, after in zip(tree.contexts, tree.steps, strict=True) for token in after]
        number = {pair: place for place, pair in enumerate(pairs)}
        taken = torch.zeros(len(pairs), self.class_count)
        for label, tokens in enumerate(self.token_ids):
            taken[[number[tokens[:place], token] for place, token in enumerate(tokens)], label] = 1
        return taken

    @cached_property
    def _begins(self) -> torch.Tensor:
        """(classes, classes) bool, whether the row's label is the beginning of the column's, and not the same."""
        number = {tokens: label for label, tokens in enumerate(self.token_ids)}
        begins = torch.zeros(self.class_count, self.class_count, dtype=torch.bool)
        for label, tokens in enumerate(self.token_ids):
            for length in range(1, len(tokens)):
                if (other := number.get(tokens[:length])) is not None:
                    begins[other, label] = True
        return begins

    def label_mass(self, model: Any, hidden: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        """Return the probability that the model's text begins with a possible label, (batch,) in [0, 1].

        A label that begins with another possible one is counted in that one.
        """
        counted_elsewhere = (class_mask[:, :, None] & self._begins.to(class_mask.device)).any(1)
        masses = hidden.detach().exp().masked_fill(~class_mask | counted_elsewhere, 0)
        return masses.sum(-1).clamp(0, 1)

    def gradient(self, model: Any, scores: ClassScores, directions: torch.Tensor) -> None:
        """Return None: logits are no function of the state at the last token alone."""


def model_tokens(model: Any, readout: ReadOut, tokens: int) -> int:
    """Return how many tokens a model runs on for a prompt of so many: with label sequences those of the labels too."""
    return context_tokens(model, readout.tree, tokens) if isinstance(readout, LabelSequences) else tokens


def check_head(model: Any) -> None:
    """Raise ModelError where a model's output embedding is adapted, so that label sequences do not cover it."""
    if runs_lora(output_head(model)):
        raise ModelError(
            f"{head_name(model)} is adapted, and label sequences read its whole vocabulary: leave it out of the "
            "adapter's targets, or choose labels of one token (label_tokens)"
        )
