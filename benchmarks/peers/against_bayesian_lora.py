"""bayesian-lora, the reference code of Yang et al. (arXiv 2308.13111), beside the dense truth, one experiment each.

Its ranks are set to the model's width where rank is not the question, so that no truncation plays a part, and its
sampled labels are averaged over seeds where sampling is not the question.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peers.bayesian_lora_calls import (
    LORA_RANK,
    WIDTH,
    class_logits,
    curvature,
    inputs_of,
    kronecker_factors,
    no_callback_fails,
    one_row_fails,
    package_jacobian,
    package_variance,
)
from benchmarks.peers.dense import Dense, covariance, dense, evidence, in_contrasts, relative_difference, variance_ratio
from benchmarks.peers.ours import fit_laplora, trace
from benchmarks.peers.subject import Subject, lora_parameters, plain_attention, tiny_subject
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
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
            "input_factors": input_factors_by_tokens(subject),
            "order": order_dependence(subject),
            "padding": padding_side(tiny_subject()),
            "variance": predictive_variance(subject, train, test),
            "without_cholesky": without_cholesky(subject, test),
            "forward_calls": forward_calls(subject, seeds),
            "dropout": training_mode(),
            "evidence": model_evidences(subject, train),
            "one_row": one_row_fails(subject),
            "no_callback": no_callback_fails(subject),
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
    kinds = ("kfac_last", "kfac_expand", "kfac_reduce", "ekfac")
    return {
        "bayesian-lora": mean * len(subject.train) / exact,
        **{kind: trace(fit_laplora(subject, kind)) / exact for kind in kinds},
        "sampling": statistics.stdev(traces) / mean,
        "seeds": seeds,
    }


def input_factors(subject: Subject, size: int, **options: Any) -> list[torch.Tensor]:
    """Return the package's factors over the inputs of each ``lora_A``, which no sampled label enters."""
    factors = kronecker_factors(subject, size, **options)
    return [a @ a.mT for name, (a, _) in factors.items() if "lora_A" in name]


def input_trace(subject: Subject, size: int, **options: Any) -> float:
    """Return the sum of their traces."""
    return float(sum(f.trace() for f in input_factors(subject, size, **options)))


def largest_gap(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Return the largest over blocks of |F - G| / |F|."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(first, second, strict=True))


def input_factors_by_tokens(subject: Subject) -> dict[str, float]:
    """Return how far the package's input factors are from those of each choice of tokens."""
    blocks = find_blocks(subject.model, len(subject.label_ids))
    batch = subject.batch(subject.train)
    jacobians = contrast_jacobians(subject.model, batch, subject.label_ids, blocks, tokens=True)
    inputs = [
        entry.inputs
        for block, entry in zip(blocks, jacobians.blocks, strict=True)
        if block.group == "lora_A" and entry.inputs is not None
    ]
    package = input_factors(subject, 4)
    wanted = {
        "last": [x[:, -1].mT @ x[:, -1] for x in inputs],
        "mean": [x.mean(1).mT @ x.mean(1) for x in inputs],
        "all": [x.flatten(0, 1).mT @ x.flatten(0, 1) / x.shape[1] for x in inputs],
    }
    return {name: largest_gap(package, factors) for name, factors in wanted.items()}


def order_dependence(subject: Subject) -> dict[str, float]:
    """Return how much the low-rank input factors depend on the rows' order, and on the batch size."""
    count, rank = len(subject.train), 4
    backwards = list(reversed(range(count)))
    cut, whole = input_factors(subject, 4, rank=rank), input_factors(subject, count, rank=rank)
    uncut = input_factors(subject, 4)
    best = [_best_of_rank(f, rank) for f in uncut]
    return {
        "rank": rank,
        "reversed": largest_gap(cut, input_factors(subject, 4, rank=rank, order=backwards)),
        "all_rows_in_one_batch": largest_gap(cut, whole),
        "best_of_that_rank": largest_gap(cut, best),
        "one_batch_is_best": largest_gap(whole, best),
        "reversed_without_truncation": largest_gap(uncut, input_factors(subject, 4, order=backwards)),
    }


def _best_of_rank(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    kept = vectors[:, -rank:]
    return kept * values[-rank:] @ kept.mT


def padding_side(subject: Subject) -> dict[str, float]:
    """Return the trace of the input factors under either padding over no padding, rows of 1 to 7 tokens.

    Also the largest change of a class logit: both read position -1, which is a pad where padding is on the right.
    """
    lora_parameters(subject.model)
    alone = input_trace(subject, 1)
    forward = class_logits(subject)
    with torch.no_grad():
        left, right = (forward(subject.model, inputs_of(subject, subject.train, side)) for side in ("left", "right"))
    return {
        "left_over_alone": input_trace(subject, 8, side="left") / alone,
        "right_over_alone": input_trace(subject, 8, side="right") / alone,
        "logit_change": float((left - right).abs().max()),
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


def without_cholesky(subject: Subject, test: Dense) -> dict[str, float | None]:
    """Return the variance where factors go straight into ``variance``, as in the README, over what they stand for."""
    factors = kronecker_factors(subject, 1)
    straight = package_variance(subject, subject.test, factors, 1.0, cholesky=False)
    return variance_ratio(in_contrasts(straight), covariance(test.jacobians, curvature(factors), 1.0))


def forward_calls(subject: Subject, seeds: int) -> dict[str, float]:
    """Return mean traces for two other forward calls, over the class logits' with the same seeds.

    The README returns logits of the whole vocabulary: labels are then sampled from all tokens. The package's example
    (``examples/example_usage.py`` in its repository) returns probabilities where logits are expected.
    """
    restricted = class_logits(subject)
    wanted = statistics.mean(sampled_traces(subject, seeds))
    calls = {
        "whole_vocabulary": lambda model, batch: model(**batch).logits[:, -1],
        "softmax_twice": lambda model, batch: restricted(model, batch).softmax(-1),
    }
    return {
        name: statistics.mean(sampled_traces(subject, seeds, forward=call)) / wanted for name, call in calls.items()
    }


def training_mode(dropout: float = 0.1, seeds: int = 20) -> dict[str, Any]:
    """Return what LoRA dropout does: the package switches the model to training mode and leaves it there."""
    from bayesian_lora import calculate_kronecker_factors

    subject, still = tiny_subject(length=6, dropout=dropout), tiny_subject(length=6)
    for one in (subject, still):
        lora_parameters(one.model)
    size = len(subject.train)
    noisy = statistics.mean(input_trace(subject, size, seed=s) for s in range(seeds))
    inputs, forward = inputs_of(subject, subject.test), class_logits(subject)
    calculate_kronecker_factors(subject.model, forward, [inputs], WIDTH, WIDTH, ["lora"])
    left_training = bool(subject.model.training)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        change = float((forward(subject.model, inputs) - forward(subject.model, inputs)).abs().max())
    return {
        "dropout": dropout,
        "input_trace_over_no_dropout": noisy / input_trace(still, size),
        "left_in_training_mode": left_training,
        "logit_change_between_two_calls": change,
    }


def model_evidences(subject: Subject, train: Dense) -> dict[str, Any]:
    """Return ``model_evidence`` beside the dense evidence of the same factors by prior variance, centred at zero."""
    from bayesian_lora import cholesky_decompose_small_factors, model_evidence

    factors = kronecker_factors(subject, 1)
    halves = cholesky_decompose_small_factors(copy.copy(factors), WIDTH, "cpu", torch.float64)
    fit = -float(F.cross_entropy(train.logits, subject.train_labels, reduction="sum"))
    norms = [p.detach().square().sum() for p in lora_parameters(subject.model).values()]
    squared = float(sum(norms))
    grid = [10.0**k for k in range(-4, 5)]

    def package(s2: float) -> float:
        variance = torch.tensor(s2, dtype=torch.float64)
        return float(model_evidence(subject.model, torch.tensor(fit), halves, LORA_RANK, WIDTH, variance).detach())

    by_package = [package(s2) for s2 in grid]
    by_dense = [evidence(curvature(factors), 1 / s2, squared, fit) for s2 in grid]
    return {
        "prior_variance": grid,
        "package": by_package,
        "dense": by_dense,
        "log_likelihood": fit,
        "package_best_prior_variance": grid[by_package.index(max(by_package))],
        "dense_best_prior_variance": grid[by_dense.index(max(by_dense))],
        "sum_of_norms": float(sum(n.sqrt() for n in norms)),
        "sum_of_squared_norms": squared,
    }
