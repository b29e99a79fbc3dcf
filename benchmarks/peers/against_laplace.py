"""laplace-torch beside laplora: the same weights, rows, likelihood and prior precision.

laplace-torch sees the model as a module from a batch to class logits in which the LoRA weights, and nothing else,
are trainable. Its covariance of the class logits is compared as a softmax sees it, in the contrasts. ``PAIRS`` names
the structures that compute the same posterior.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peers.dense import in_contrasts, relative_difference, variance_ratio
from benchmarks.peers.laplace_torch_calls import (
    PAIRS,
    ClassLogits,
    fit_laplace,
    laplace_covariances,
    laplace_jacobians,
    mapping,
    quiet,
)
from benchmarks.peers.ours import covariances, fit_laplora, log_determinant_ratio
from benchmarks.peers.subject import ARTIFACT, Subject, artifact_subject, initial_weights, lora_parameters, tiny_subject
from laplora.artifact.folder import read_artifact
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Posterior

#: Prior precision of the tiny models.
TINY_PRECISION = 2.0


def compare(rows: int = 40) -> dict[str, Any]:
    """Return the comparison on the tiny model, and on so many training and test rows of the default artifact's."""
    with quiet():
        return {"tiny": compare_tiny(), "artifact": compare_artifact(rows)}


def compare_tiny() -> dict[str, Any]:
    """Return how far each pair of structures is apart on a tiny float64 model, rows of 1 to 7 tokens.

    laplace-torch fits from batches of one row (``alone``) or of eight (``padded``), laplora from batches of eight.
    """
    subject, even = tiny_subject(), tiny_subject(length=6)
    start = torch.cat([w.flatten() for w in initial_weights(subject.model).values()])

    def pair(subject: Subject, structure: str, size: int) -> dict[str, Any]:
        theirs = fit_laplace(subject, structure, TINY_PRECISION, size=size, prior_mean=start)
        return difference(subject, theirs, fit_laplora(subject, structure, size=8), TINY_PRECISION, start)

    pairs = {
        f"{structure}, {name}": pair(subject, structure, size)
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
    return {
        **pairs,
        "kfac_expand, equal lengths": pair(even, "kfac_expand", 8),
        "padding moves laplora": moved,
    }


def compare_artifact(rows: int) -> dict[str, Any]:
    """Return the same on the default artifact's weights in float64.

    ``full`` would be a square of 460,800 parameters: it is compared on ``lora_B`` of the last layer's values.
    """
    subject = artifact_subject(train=rows, test=rows, dtype=torch.float64)
    zero, precision = centre(subject), served_precision()
    results: dict[str, Any] = {"rows": rows, "prior_precision": precision}
    jacobians: Sequence[torch.Tensor] | None = None
    for structure in ("diagonal", "kfac_expand", "kfac_reduce"):
        print(f"laplace-torch: {structure}, {rows} + {rows} rows", flush=True)
        ours = fit_laplora(subject, structure)
        theirs = fit_laplace(subject, structure, precision, prior_mean=zero)
        jacobians = jacobians or laplace_jacobians(subject, theirs)
        results[structure] = difference(subject, theirs, ours, precision, zero, jacobians)
    last = [b for b in find_blocks(subject.model, 2) if "v_proj" in b.name and b.group == "lora_B"][-1]
    ours = fit_laplora(subject, "exact", blocks=(last,))
    theirs = fit_laplace(subject, "exact", precision, names=[last.name])
    results["exact, one block"] = difference(subject, theirs, ours, precision, None)
    return results


def served_precision() -> float:
    """Return the prior precision that the default artifact serves, two digits; the mean of its groups' logarithms."""
    values = read_artifact(ARTIFACT).manifest.prior.precision.values()
    return float(f"{statistics.geometric_mean(values):.2g}")


def centre(subject: Subject) -> torch.Tensor:
    """Return the zero vector that both priors are centred at, flat: the artifact does not ship its initial weights."""
    return torch.cat([torch.zeros_like(p).flatten() for p in lora_parameters(subject.model).values()])


def compared(ours: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
    """Return how far two covariances are apart."""
    return {"covariance": relative_difference(ours, wanted)} | variance_ratio(ours, wanted)


def difference(
    subject: Subject,
    theirs: Any,
    ours: Posterior,
    precision: float,
    start: torch.Tensor | None,
    jacobians: Sequence[torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Return how far two posteriors are apart: the test rows' covariances, and the log evidence.

    Args:
        start: what both priors are centred at, flat; None leaves the evidence out.
        jacobians: laplace-torch's of the test rows, if they are there already.
    """
    package = in_contrasts(laplace_covariances(theirs, jacobians or laplace_jacobians(subject, theirs)))
    result = compared(package, covariances(subject, ours, precision))
    if start is not None:
        weights = torch.cat([p.detach().flatten() for p in lora_parameters(subject.model).values()])
        distance = float((weights.double() - start.double()).square().sum())
        fit = -float(F.cross_entropy(train_logits(subject), subject.train_labels, reduction="sum"))
        evidence = fit - 0.5 * precision * distance - 0.5 * log_determinant_ratio(ours, precision)
        their_evidence = float(theirs.log_marginal_likelihood())
        result |= {
            "evidence_laplace_torch": their_evidence,
            "evidence_laplora": evidence,
            "evidence": abs(their_evidence - evidence) / abs(evidence),
        }
    return result


@torch.no_grad()
def train_logits(subject: Subject) -> torch.Tensor:
    """Return the training rows' class logits, float64."""
    module = ClassLogits(subject.model, subject.label_ids)
    return torch.cat([module(mapping(subject, [row])).double() for row in subject.train])
