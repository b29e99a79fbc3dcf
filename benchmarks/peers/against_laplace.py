"""laplace-torch beside laplora: the same weights, rows, likelihood and prior precision.

laplace-torch sees the model as a module from a batch to class logits in which the LoRA weights, and nothing else,
are trainable. Its covariance of the class logits is compared as a softmax sees it, in the contrasts. ``PAIRS`` names
the structures that compute the same posterior.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peers.laplace_torch_calls import ClassLogits, fit_laplace, laplace_covariances, mapping, quiet
from benchmarks.peers.ours import covariances, fit_laplora, in_contrasts, relative_difference, variance_ratio
from benchmarks.peers.subject import Subject, initial_weights, lora_parameters, tiny_subject
from laplora.posterior.base import Posterior

#: Structures that compute the same posterior in both; laplora's ``joint_core`` with nothing left out is exact.
PAIRS = ("kfac_reduce", "joint_core")
#: Prior precision of the tiny models.
TINY_PRECISION = 2.0


def compare() -> dict[str, Any]:
    """Return the comparison on the tiny model."""
    with quiet():
        return {"tiny": compare_tiny()}


def compare_tiny() -> dict[str, Any]:
    """Return how far each pair of structures is apart on a tiny float64 model, rows of 1 to 7 tokens.

    laplace-torch fits from batches of one row (``alone``) or of eight (``padded``), laplora from batches of eight.
    """
    subject = tiny_subject()
    start = torch.cat([w.flatten() for w in initial_weights(subject.model).values()])

    def pair(structure: str, size: int) -> dict[str, Any]:
        theirs = fit_laplace(subject, structure, TINY_PRECISION, size=size, prior_mean=start)
        return difference(subject, theirs, fit_laplora(subject, structure, size=8), TINY_PRECISION, start)

    pairs = {
        f"{structure}, {name}": pair(structure, size)
        for structure in PAIRS
        for name, size in (("alone", 1), ("padded", 8))
    }
    moved = {}
    for structure in PAIRS:
        whole, alone = (
            covariances(subject, fit_laplora(subject, structure, size=size), TINY_PRECISION, size=size)
            for size in (8, 1)
        )
        moved[structure] = relative_difference(whole, alone)
    return {**pairs, "padding moves laplora": moved}


def difference(subject: Subject, theirs: Any, ours: Posterior, precision: float, start: torch.Tensor) -> dict[str, Any]:
    """Return how far two posteriors, both with a prior around ``start``, are apart: covariances, and log evidence."""
    package, own = in_contrasts(laplace_covariances(subject, theirs)), covariances(subject, ours, precision)
    result: dict[str, Any] = {"covariance": relative_difference(package, own)} | variance_ratio(package, own)
    weights = torch.cat([p.detach().flatten() for p in lora_parameters(subject.model).values()])
    distance = float((weights.double() - start.double()).square().sum())
    fit = -float(F.cross_entropy(train_logits(subject), subject.train_labels, reduction="sum"))
    precisions = torch.full((len(ours.blocks),), precision, dtype=torch.float64)
    evidence = fit - 0.5 * precision * distance - 0.5 * float(ours.log_determinant_ratio(precisions))
    their_evidence = float(theirs.log_marginal_likelihood())
    return result | {
        "evidence_laplace_torch": their_evidence,
        "evidence_laplora": evidence,
        "evidence": abs(their_evidence - evidence) / abs(evidence),
    }


@torch.no_grad()
def train_logits(subject: Subject) -> torch.Tensor:
    """Return the training rows' class logits, float64."""
    module = ClassLogits(subject.model, subject.label_ids)
    return torch.cat([module(mapping(subject, [row])).double() for row in subject.train])
