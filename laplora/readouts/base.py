"""The interface of read-outs: class logits from a model, and what the Jacobians need of it.

A read-out sees the model from outside. It runs a batch, returns the class logits, and says which weights of its own
(beside LoRA's) the posterior covers. The Jacobians of the logits then follow by automatic differentiation of what it
ran, or by the written-out reverse pass where the logits are a function of the decoder's final hidden state at the last
token (``ReadOut.gradient``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from laplora.linearised import Likelihood
from laplora.prompts.rows import Batch, Side

#: Notes input and output of a linear map that is not called as a module, under its block's name; returns the output.
Record = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ClassScores:
    """The scores of a read-out for a batch.

    Attributes:
        logits: (batch, classes), nats; float32, or float64 for a float64 model.
        hidden: (batch, features), the state that they were read from, or what else ``ReadOut.label_mass`` needs.
        attention_mask: (batch * runs, tokens), 1 at real tokens, of the inputs that the model ran on. ``runs`` is 1, or
            how many texts a row is scored by; the runs of a row follow each other.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    attention_mask: torch.Tensor


@dataclass(frozen=True)
class LinearGradient:
    """Inputs and output gradients of one linear map above the decoder, from which its block's Jacobian follows.

    Attributes:
        block: name of the block.
        side: its group.
        inputs: (batch, in); gradients: (directions, batch, out).
    """

    block: str
    side: str
    inputs: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True)
class HeadGradient:
    """The reverse pass from directions in the logits down to the decoder's final hidden state.

    Attributes:
        hidden: (directions, 1 or batch, hidden), at least float32.
        parts: of the read-out's own adapted or trained weights.
    """

    hidden: torch.Tensor
    parts: tuple[LinearGradient, ...]


class ReadOut(Protocol):
    """From a model to class logits; a frozen value without tensors of the model."""

    @property
    def class_count(self) -> int:
        """Number of classes."""

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of a label given the logits."""

    @property
    def side(self) -> Side:
        """Side of its rows that is padded, and of a long text that is cut."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Module paths in the base of its own trained linears, blocks of the group ``head``.

        The last one gives the logits. No call of it shows: ``scores`` records it.
        """

    @property
    def reads_last_token(self) -> bool:
        """Whether the logits are a function of the decoder's final hidden state at the prompt's last token alone.

        If not, the written-out reverse pass does not apply.
        """

    def scores(self, model: Any, batch: Batch, record: Record | None = None) -> ClassScores:
        """Return the class logits of a batch on the model's device.

        Args:
            record: notes linear maps with a block that no module call shows; for automatic differentiation.
        """

    def label_mass(self, model: Any, hidden: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        """Return the probability that the model gives the possible labels among all texts, (batch,) in [0, 1].

        It is 1 where the model can answer nothing else. ``hidden`` is that of the scores.
        """

    def gradient(self, model: Any, scores: ClassScores, directions: torch.Tensor) -> HeadGradient | None:
        """Return the gradients of directions in the logits; None where they are no function of the final hidden state.

        Args:
            directions: (directions, 1 or batch, classes), what is differentiated is their product with the logits.
        """
