"""laplace-torch beside laplora: the same weights, rows, likelihood and prior precision.

laplace-torch sees the model as a module from a batch to class logits in which the LoRA weights, and nothing else,
are trainable. Its covariance of the class logits is compared as a softmax sees it, in the contrasts.

| laplace-torch 0.3 | laplora |
| --- | --- |
| ``diag`` | ``diagonal`` |
| ``kron``, ``kfac_approx="expand"`` (its default) | ``kfac_expand`` |
| ``kron``, ``kfac_approx="reduce"`` | ``kfac_reduce`` |
| ``full`` | ``exact`` |
| ``gp`` (every training row) | ``exact``, whose likelihood Hessian it cuts to a diagonal |
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
from benchmarks.peers.subject import (
    ARTIFACT,
    Subject,
    artifact_subject,
    initial_weights,
    lora_parameters,
    tiny_subject,
)
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
    """Return the comparison on the tiny model, and on the default artifact's model.

    Args:
        rows: training rows, and test rows, of the artifact's.
    """
    with quiet():
        return {"tiny": compare_tiny(), "artifact": compare_artifact(rows)}


def compare_tiny() -> dict[str, Any]:
    """Return how far each pair of structures is apart on a tiny float64 model, rows of 1 to 7 tokens.

    ``alone``: laplace-torch fits from batches of one row, which need no padding. ``padded``: from batches of eight;
    laplora's batches are of eight in both.
    """
    subject = tiny_subject()
    start = torch.cat([w.flatten() for w in initial_weights(subject.model).values()])
    found: dict[str, Any] = {}
    for structure in PAIRS:
        ours = fit_laplora(subject, structure, size=8)
        for name, size in (("alone", 1), ("padded", 8)):
            theirs = fit_laplace(subject, structure, TINY_PRECISION, size=size, prior_mean=start)
            found[f"{structure}, {name}"] = difference(subject, theirs, ours, TINY_PRECISION, start)
    even = tiny_subject(length=6)
    found["kfac_expand, equal lengths"] = difference(
        even,
        fit_laplace(even, "kfac_expand", TINY_PRECISION, size=8, prior_mean=start),
        fit_laplora(even, "kfac_expand", size=8),
        TINY_PRECISION,
        start,
    )
    found["padding moves laplora"] = {
        structure: relative_difference(
            covariances(subject, fit_laplora(subject, structure, size=8), TINY_PRECISION, size=8),
            covariances(subject, fit_laplora(subject, structure, size=1), TINY_PRECISION, size=1),
        )
        for structure in PAIRS
    }
    found["gp"] = gaussian_process(even)
    return found


def compare_artifact(rows: int) -> dict[str, Any]:
    """Return the same on the default artifact's weights in float64, and the probabilities made from one covariance.

    ``full`` would need a square of 460,800 parameters: it is compared on one block, ``lora_B`` of the last layer's
    values.
    """
    subject = artifact_subject(train=rows, test=rows, dtype=torch.float64)
    zero, precision = centre(subject), served_precision()
    found: dict[str, Any] = {"rows": rows, "prior_precision": precision}
    traces: dict[str, float] = {}
    jacobians: Sequence[torch.Tensor] | None = None
    for structure in ("diagonal", "kfac_expand", "kfac_reduce"):
        print(f"laplace-torch: {structure}, {rows} + {rows} rows", flush=True)
        ours = fit_laplora(subject, structure)
        theirs = fit_laplace(subject, structure, precision, prior_mean=zero)
        jacobians = jacobians or laplace_jacobians(subject, theirs)
        found[structure] = difference(subject, theirs, ours, precision, zero, jacobians)
        traces[structure] = trace(ours)
        if structure == "kfac_expand":
            found["links"] = link_functions(subject, theirs, jacobians)
    traces["kfac_last"] = trace(fit_laplora(subject, "kfac_last"))
    # The diagonal's trace is the exact GGN's.
    found["traces"] = {kind: traces[kind] / traces["diagonal"] for kind in ("kfac_last", "kfac_expand", "kfac_reduce")}
    last = [b for b in find_blocks(subject.model, 2) if "v_proj" in b.name and b.group == "lora_B"][-1]
    ours = fit_laplora(subject, "exact", blocks=(last,))
    theirs = fit_laplace(subject, "exact", precision, names=[last.name])
    found["exact, one block"] = difference(subject, theirs, ours, precision, None)
    found["float32"] = single_precision(min(rows, 10))
    return found


def served_precision() -> float:
    """Return the prior precision that the default artifact serves, two digits; the mean of its groups' logarithms."""
    values = read_artifact(ARTIFACT).manifest.prior.precision.values()
    return float(f"{statistics.geometric_mean(values):.2g}")


def single_precision(rows: int = 10) -> dict[str, float]:
    """Return how far the diagonal posteriors are apart in float32, where laplace-torch's sums take over.

    ``double_sums``: the same factors and Jacobians of laplace-torch, summed over parameters in float64.
    """
    subject = artifact_subject(train=rows, test=rows)
    precision = served_precision()
    ours = fit_laplora(subject, "diagonal")
    theirs = fit_laplace(subject, "diagonal", precision, prior_mean=centre(subject))
    jacobians = laplace_jacobians(subject, theirs)
    found = difference(subject, theirs, ours, precision, centre(subject), jacobians)
    variance = theirs.posterior_variance.double()
    again = torch.cat([torch.einsum("ncp,p,nkp->nck", j, variance, j) for j in (j.double() for j in jacobians)])
    return {
        "rows": rows,
        "covariance": found["covariance"],
        "double_sums": relative_difference(in_contrasts(again), covariances(subject, ours, precision)),
        "evidence_gap": abs(found["evidence_laplace_torch"] - found["evidence_laplora"]),
    }


def centre(subject: Subject) -> torch.Tensor:
    """Return the zero vector that both priors are centred at, flat: the artifact does not ship its initial weights."""
    return torch.cat([torch.zeros_like(p).flatten() for p in lora_parameters(subject.model).values()])


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
    found = in_contrasts(laplace_covariances(theirs, jacobians or laplace_jacobians(subject, theirs)))
    wanted = covariances(subject, ours, precision)
    result: dict[str, Any] = {"covariance": relative_difference(found, wanted)} | variance_ratio(found, wanted)
    if start is not None:
        weights = torch.cat([p.detach().flatten() for p in lora_parameters(subject.model).values()])
        distance = float((weights.double() - start.double()).square().sum())
        precisions = torch.full((len(ours.blocks),), precision, dtype=torch.float64)
        fit = -float(F.cross_entropy(train_logits(subject), subject.train_labels, reduction="sum"))
        wanted_evidence = fit - 0.5 * precision * distance - 0.5 * float(ours.log_determinant_ratio(precisions))
        found_evidence = float(theirs.log_marginal_likelihood())
        result |= {
            "evidence_laplace_torch": found_evidence,
            "evidence_laplora": wanted_evidence,
            "evidence": abs(found_evidence - wanted_evidence) / abs(wanted_evidence),
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

    It replaces each row's likelihood Hessian ``diag p - p p^T`` by its diagonal, as it says. ``diagonal_hessian`` is
    what that alone does, from a dense inverse over the same Jacobians; ``package`` is what it answers. Its mean
    counts frozen parameters too, which its Jacobians do not: they are handed to it as buffers.

    Args:
        subject: rows all of one length; its model is of no other use afterwards.
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
    found = in_contrasts(posterior.functional_variance(jacobians).detach())
    training, logits = posterior.backend.jacobians(subject.batch(subject.train).input_ids)
    probs = logits.softmax(1)
    hessian = torch.diag_embed(probs * (1 - probs))
    approximate = torch.einsum("ncp,ncd,ndq->pq", training, hessian, training)
    alone = in_contrasts(covariance(jacobians, approximate, TINY_PRECISION))
    return {
        "package": {"covariance": relative_difference(found, wanted)} | variance_ratio(found, wanted),
        "diagonal_hessian": {"covariance": relative_difference(alone, wanted)} | variance_ratio(alone, wanted),
    }


def link_functions(subject: Subject, theirs: Any, jacobians: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return how far laplace-torch's probabilities are from the integral over the same Gaussian, and their NLL.

    The integral is laplora's, right to 1e-11 at two classes, over laplace-torch's own mean and covariance. Its
    ``probit`` looks at each class logit's own variance, which holds what is common to all logits and which no
    softmax sees; ``mc`` takes its default of 100 samples.
    """
    transform = contrasts(len(subject.label_ids))
    possible = torch.ones(len(subject.test), len(subject.label_ids), dtype=torch.bool)
    inputs = [mapping(subject, [row]) for row in subject.test]
    with torch.no_grad():
        logits = torch.cat([theirs.model(x) for x in inputs]).double()
    full = laplace_covariances(theirs, jacobians).double()
    exact = posterior_predictive(logits @ transform, in_contrasts(full), possible).probs
    seen = in_contrasts(full).diagonal(dim1=1, dim2=2).sum(1)
    found: dict[str, Any] = {
        "map": {"nll": nll(class_probs(logits, possible), subject.test_labels)},
        "integral": {"nll": nll(exact, subject.test_labels)},
        "share_of_variance_that_a_softmax_sees": float((seen / full.diagonal(dim1=1, dim2=2).sum(1)).median()),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for link in LINKS:
            probs = torch.cat([theirs(x, pred_type="glm", link_approx=link).detach() for x in inputs]).double()
            found[link] = {
                "nll": nll(probs, subject.test_labels),
                "largest_gap": float((probs - exact).abs().max()),
                "mean_gap": float((probs - exact).abs()[:, 0].mean()),
            }
    return found
