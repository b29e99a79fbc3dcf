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
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.dense import covariance, in_contrasts, relative_difference, variance_ratio
from benchmarks.peers.laplace_torch_calls import (
    PAIRS,
    ClassLogits,
    fit_laplace,
    laplace_covariances,
    laplace_jacobians,
    mapping,
    quiet,
)
from benchmarks.peers.ours import covariances, fit_laplora, trace
from benchmarks.peers.subject import ARTIFACT, Subject, artifact_subject, initial_weights, lora_parameters, tiny_subject
from laplora.artifact.folder import read_artifact
from laplora.jacobians.contrasts import find_blocks
from laplora.linearised import class_probs, contrasts
from laplora.metrics.scores import nll
from laplora.posterior.base import Posterior
from laplora.predictive.gaussian import posterior_predictive

#: Prior precision of the tiny models.
TINY_PRECISION = 2.0
LINKS = ("probit", "bridge", "mc")


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
        "gp": gaussian_process(even),
    }


def compare_artifact(rows: int) -> dict[str, Any]:
    """Return the same on the default artifact's weights in float64, and the probabilities made from one covariance.

    ``full`` would be a square of 460,800 parameters: it is compared on ``lora_B`` of the last layer's values.
    """
    subject = artifact_subject(train=rows, test=rows, dtype=torch.float64)
    zero, precision = centre(subject), served_precision()
    results: dict[str, Any] = {"rows": rows, "prior_precision": precision}
    traces: dict[str, float] = {}
    jacobians: Sequence[torch.Tensor] | None = None
    for structure in ("diagonal", "kfac_expand", "kfac_reduce"):
        print(f"laplace-torch: {structure}, {rows} + {rows} rows", flush=True)
        ours = fit_laplora(subject, structure)
        theirs = fit_laplace(subject, structure, precision, prior_mean=zero)
        jacobians = jacobians or laplace_jacobians(subject, theirs)
        results[structure] = difference(subject, theirs, ours, precision, zero, jacobians)
        traces[structure] = trace(ours)
        if structure == "kfac_expand":
            results["links"] = link_functions(subject, theirs, jacobians)
    traces["kfac_last"] = trace(fit_laplora(subject, "kfac_last"))
    # The diagonal's trace is the exact GGN's.
    kinds = ("kfac_last", "kfac_expand", "kfac_reduce")
    results["traces"] = {kind: traces[kind] / traces["diagonal"] for kind in kinds}
    last = [b for b in find_blocks(subject.model, 2) if "v_proj" in b.name and b.group == "lora_B"][-1]
    ours = fit_laplora(subject, "exact", blocks=(last,))
    theirs = fit_laplace(subject, "exact", precision, names=[last.name])
    results["exact, one block"] = difference(subject, theirs, ours, precision, None)
    results["float32"] = single_precision(min(rows, 10))
    return results


def served_precision() -> float:
    """Return the prior precision that the default artifact serves, two digits; the mean of its groups' logarithms."""
    values = read_artifact(ARTIFACT).manifest.prior.precision.values()
    return float(f"{statistics.geometric_mean(values):.2g}")


def single_precision(rows: int) -> dict[str, float]:
    """Return how far the diagonal posteriors are apart in float32, where laplace-torch's sums take over.

    ``double_sums``: the same factors and Jacobians of laplace-torch, summed over parameters in float64.
    """
    subject, precision = artifact_subject(train=rows, test=rows), served_precision()
    ours = fit_laplora(subject, "diagonal")
    theirs = fit_laplace(subject, "diagonal", precision, prior_mean=centre(subject))
    jacobians = laplace_jacobians(subject, theirs)
    result = difference(subject, theirs, ours, precision, centre(subject), jacobians)
    variance = theirs.posterior_variance.double()
    again = torch.cat([torch.einsum("ncp,p,nkp->nck", j, variance, j) for j in (j.double() for j in jacobians)])
    return {
        "rows": rows,
        "covariance": result["covariance"],
        "double_sums": relative_difference(in_contrasts(again), covariances(subject, ours, precision)),
        "evidence_gap": abs(result["evidence_laplace_torch"] - result["evidence_laplora"]),
    }


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
        precisions = torch.full((len(ours.blocks),), precision, dtype=torch.float64)
        fit = -float(F.cross_entropy(train_logits(subject), subject.train_labels, reduction="sum"))
        evidence = fit - 0.5 * precision * distance - 0.5 * float(ours.log_determinant_ratio(precisions))
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


class TokenLogits(ClassLogits):
    """The same from token ids alone, (rows, tokens) without padding: what ``gp`` can collate by itself."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the class logits."""
        ones = torch.ones_like(ids)
        return super().forward({"input_ids": ids, "attention_mask": ones, "position_ids": ones.cumsum(1) - 1})


def gaussian_process(subject: Subject) -> dict[str, Any]:
    """Return laplace-torch's function-space posterior over all training rows, beside laplora's exact one.

    It replaces each row's likelihood Hessian ``diag p - p p^T`` by its diagonal, as its documentation tells;
    ``diagonal_hessian`` is what that alone does. Its mean counts frozen parameters too, so they become buffers: the
    model is of no other use afterwards. Its rows have one length.
    """
    from laplace import Laplace
    from laplace.curvature import CurvlinopsGGN

    wanted = covariances(subject, fit_laplora(subject, "exact"), TINY_PRECISION)
    lora_parameters(subject.model)
    for module in subject.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    posterior = Laplace(
        TokenLogits(subject.model, subject.label_ids),
        "classification",
        "all",
        "gp",
        prior_precision=TINY_PRECISION,
        backend=CurvlinopsGGN,
        n_subset=len(subject.train),
    )
    data = TensorDataset(subject.batch(subject.train).input_ids, subject.train_labels)
    posterior.fit(DataLoader(data, batch_size=8))
    jacobians, _ = posterior.backend.jacobians(subject.batch(subject.test).input_ids)
    package = in_contrasts(posterior.functional_variance(jacobians).detach())
    training, logits = posterior.backend.jacobians(subject.batch(subject.train).input_ids)
    probs = logits.softmax(1)
    hessian = torch.diag_embed(probs * (1 - probs))
    approximate = torch.einsum("ncp,ncd,ndq->pq", training, hessian, training)
    alone = in_contrasts(covariance(jacobians, approximate, TINY_PRECISION))
    return {"package": compared(package, wanted), "diagonal_hessian": compared(alone, wanted)}


def link_functions(subject: Subject, theirs: Any, jacobians: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return how far laplace-torch's probabilities are from the integral over the same Gaussian, and their NLL.

    The integral is laplora's, right to 1e-11 at two classes. ``probit`` looks at each class logit's variance, which
    holds what is common to all logits and no softmax sees; ``mc`` takes its default of 100 samples.
    """
    transform = contrasts(len(subject.label_ids))
    possible = torch.ones(len(subject.test), len(subject.label_ids), dtype=torch.bool)
    inputs = [mapping(subject, [row]) for row in subject.test]
    with torch.no_grad():
        logits = torch.cat([theirs.model(x) for x in inputs]).double()
    full = laplace_covariances(theirs, jacobians).double()
    exact = posterior_predictive(logits @ transform, in_contrasts(full), possible).probs
    seen = in_contrasts(full).diagonal(dim1=1, dim2=2).sum(1)
    results: dict[str, Any] = {
        "map": {"nll": nll(class_probs(logits, possible), subject.test_labels)},
        "integral": {"nll": nll(exact, subject.test_labels)},
        "share_of_variance_that_a_softmax_sees": float((seen / full.diagonal(dim1=1, dim2=2).sum(1)).median()),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for link in LINKS:
            probs = torch.cat([theirs(x, pred_type="glm", link_approx=link).detach() for x in inputs]).double()
            gaps = (probs - exact).abs()
            results[link] = {
                "nll": nll(probs, subject.test_labels),
                "largest_gap": float(gaps.max()),
                "mean_gap": float(gaps[:, 0].mean()),
            }
    return results
