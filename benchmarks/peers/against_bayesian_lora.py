"""bayesian-lora, the reference code of Yang et al. (arXiv 2308.13111), beside the dense truth, one experiment each.

Its ranks are set to the model's width where rank is not the question, so that no truncation plays a part, and its
sampled labels are averaged over seeds where sampling is not the question.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch

from benchmarks.peers.bayesian_lora_calls import (
    WIDTH,
    curvature,
    kronecker_factors,
    package_jacobian,
    package_variance,
)
from benchmarks.peers.dense import Dense, covariance, dense, in_contrasts, relative_difference, variance_ratio
from benchmarks.peers.ours import fit_laplora, trace
from benchmarks.peers.subject import Subject, lora_parameters, plain_attention, tiny_subject
from laplora.linearised import contrasts

BATCH_SIZES = (1, 2, 4, 8, 24)


def compare(seeds: int = 200) -> dict[str, Any]:
    """Return the result of every experiment; ``seeds``: of the package's sampled labels."""
    subject = tiny_subject(length=6)
    lora_parameters(subject.model)
    with plain_attention(), warnings.catch_warnings():
        # torch: the first layer's LoRA input needs no gradient, which the package's backward hooks do not mind.
        warnings.filterwarnings("ignore", message="Full backward hook is firing.*")
        train, test = dense(subject, subject.train), dense(subject, subject.test)
        return {
            "rows": {"train": len(subject.train), "test": len(subject.test), "tokens": 6},
            "jacobians": jacobian_agreement(subject, test),
            "batch_size": batch_sizes(subject, train),
            "tokens": which_tokens(subject, train, seeds),
            "variance": predictive_variance(subject, train, test),
        }


def sampled_traces(subject: Subject, seeds: int, **options: Any) -> list[float]:
    """Return the trace of ``curvature`` by seed of the sampled labels, all rows in one batch."""
    size = len(subject.train)
    return [float(curvature(kronecker_factors(subject, size, seed=s, **options)).trace()) for s in range(seeds)]


def jacobian_agreement(subject: Subject, test: Dense) -> dict[str, float]:
    """Return how far ``jacobian_mean`` is from the dense Jacobians: nothing but rounding is expected."""
    jacobian, logits = package_jacobian(subject, subject.test)
    flat = torch.cat([j.flatten(2) for j in jacobian.values()], 2)
    return {
        "jacobian": relative_difference(torch.einsum("cd,ncp->ndp", contrasts(flat.shape[1]), flat), test.jacobians),
        "logits": relative_difference(logits, test.logits),
    }


def batch_sizes(subject: Subject, train: Dense) -> dict[str, dict[str, float]]:
    """Return the trace of the curvature over the exact GGN's, by rows per batch; all with the same sampled labels.

    ``full_rank`` factors are averaged over batches on both sides, low-rank ones are sums.
    """
    exact = float(train.ggn().trace())

    def ratio(batch: int, rank: int | None) -> float:
        factors = kronecker_factors(subject, batch, rank=rank)
        return float(curvature(factors, low_rank=rank is not None).trace()) / exact

    return {
        name: {str(batch): ratio(batch, rank) for batch in BATCH_SIZES}
        for name, rank in (("low_rank", WIDTH), ("full_rank", None))
    }


def which_tokens(subject: Subject, train: Dense, seeds: int) -> dict[str, float]:
    """Return traces over the exact GGN's: of the package's factors, and of laplora's kinds of KFAC.

    The package's is a mean over seeds at all rows in one batch, times the number of rows: what one row per batch
    gives. ``sampling`` is the standard deviation over seeds, relative to the mean.
    """
    exact = float(train.ggn().trace())
    traces = sampled_traces(subject, seeds)
    mean = statistics.mean(traces)
    kinds = ("kfac_reduce", "ekfac")
    return {
        "bayesian-lora": mean * len(subject.train) / exact,
        **{kind: trace(fit_laplora(subject, kind)) / exact for kind in kinds},
        "sampling": statistics.stdev(traces) / mean,
        "seeds": seeds,
    }


def predictive_variance(subject: Subject, train: Dense, test: Dense) -> dict[str, Any]:
    """Return the package's predictive variance beside that of the exact GGN, by prior variance and batch size.

    ``own_curvature`` compares it with the dense posterior of the very same factors: its algebra alone.
    """
    factors = {b: kronecker_factors(subject, b) for b in BATCH_SIZES}
    results: dict[str, Any] = {}
    for prior_variance in (1.0, 100.0):
        truth = covariance(test.jacobians, train.ggn(), 1 / prior_variance)
        blocks = covariance(test.jacobians, train.block_diagonal(train.ggn()), 1 / prior_variance)
        ratios = {"exact_block_diagonal": variance_ratio(blocks, truth)}
        for size, one in factors.items():
            value = in_contrasts(package_variance(subject, subject.test, one, prior_variance))
            ratios[f"batch {size}"] = variance_ratio(value, truth)
        results[f"prior variance {prior_variance:g}"] = ratios
    package = in_contrasts(package_variance(subject, subject.test, factors[1], 1.0))
    expected = covariance(test.jacobians, curvature(factors[1]), 1.0)
    return results | {"own_curvature": relative_difference(package, expected)}
