"""The method's inputs: trained matrices as blocks, and a batch's Jacobians with respect to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from laplora.linearised import Likelihood, contrast_hessian, mean_of


@dataclass(frozen=True)
class Block:
    """One weight matrix that the posterior covers, seen as (wide, narrow).

    Attributes:
        name: module path and matrix, for example ``model.layers.0.self_attn.q_proj.lora_A``.
        group: ``lora_A`` (wide side: its input), ``lora_B`` (wide side: its output), or ``head``, a trained linear of
            the read-out (wide side: its input, with a column for the bias if it has one).
        wide: size of the side away from the rank; the number of classes for ``lm_head``'s ``lora_B``,
            of which only the label rows matter.
        narrow: the LoRA rank; of the head its outputs.
    """

    name: str
    group: Literal["lora_A", "lora_B", "head"]
    wide: int
    narrow: int


@dataclass(frozen=True)
class BlockJacobian:
    """Jacobians of one block for a batch, and what the Kronecker factors need of them.

    The sums are None unless they were requested.

    Attributes:
        jacobian: (batch, classes - 1, wide, narrow), exact, all real tokens.
        mean_input: (batch, in), the linear's input averaged over real tokens.
        summed_gradient: (batch, classes - 1, out), its output gradient summed over real tokens.
    """

    jacobian: torch.Tensor
    mean_input: torch.Tensor | None = None
    summed_gradient: torch.Tensor | None = None


@dataclass(frozen=True)
class ContrastJacobians:
    """Logits and Jacobians of a batch.

    Attributes:
        logits: (batch, classes).
        hidden: (batch, features), the state that the logits were read from.
        blocks: one entry per block, in the blocks' order.
        likelihood: of a label given the logits; its directions are those of the Jacobians.
        weights: (batch, directions, directions) float64, of Jacobians in other directions than the likelihood's: the
            curvature in them (``laplora.linearised``, Lambda). None: the likelihood's, exact.
        directions: (directions, 1 or batch, classes), those of the Jacobians. None: the likelihood's.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    blocks: tuple[BlockJacobian, ...]
    likelihood: Likelihood = "categorical"
    weights: torch.Tensor | None = None
    directions: torch.Tensor | None = None

    @property
    def mean(self) -> torch.Tensor:
        """``Q^T f``, (batch, directions of the likelihood), nats."""
        return mean_of(self.likelihood, self.logits)

    def curvature(self, class_mask: torch.Tensor) -> torch.Tensor:
        """Return ``Lambda`` of each row in the directions of the Jacobians, (batch, directions, directions) float64."""
        if self.weights is not None:
            return self.weights
        if self.likelihood == "categorical":
            return contrast_hessian(self.logits, class_mask)
        probs = self.logits.double().sigmoid()
        return torch.diag_embed((probs * (1 - probs)).masked_fill(~class_mask, 0))


@dataclass(frozen=True)
class Directions:
    """Directions in the logits whose Jacobians are computed, in place of the likelihood's own.

    Attributes:
        vectors: (directions, 1 or batch, classes).
        weights: (batch, directions, directions) float64, the curvature in them (``ContrastJacobians.weights``).
    """

    vectors: torch.Tensor
    weights: torch.Tensor | None = None


#: Chooses them from a batch's logits (batch, classes) and class mask.
Choose = Callable[[torch.Tensor, torch.Tensor], Directions]
