"""bayesian-lora called as its README says, on a subject's rows; nothing in it is changed.

It needs two things from outside: an ``output_callback`` (without one ``jacobian_mean`` reads a global that it does not
define) and tokenizer-like inputs with attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchEncoding

from benchmarks.peers.subject import Subject
from laplora.prompts.rows import EncodedRow

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]

#: Width of the tiny model: as a rank of the low-rank factors it cuts nothing off.
WIDTH = 16

LORA_RANK = 3


def inputs_of(subject: Subject, rows: Sequence[EncodedRow]) -> BatchEncoding:
    """Return rows as a tokenizer would: padded on the left, no positions."""
    batch = subject.batch(rows)
    return BatchEncoding({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})


def class_logits(subject: Subject) -> Callable[[Any, BatchEncoding], torch.Tensor]:
    """Return the README's forward call, its logits restricted to the class labels."""
    return lambda model, batch: model(**batch).logits[:, -1, list(subject.label_ids)]


def kronecker_factors(subject: Subject, size: int, *, seed: int = 0, rank: int | None = WIDTH) -> Factors:
    """Return the package's factors of the training rows, ``size`` rows per batch, by ``seed`` of its sampled labels."""
    from bayesian_lora import calculate_kronecker_factors

    loader = [inputs_of(subject, subject.train[i : i + size]) for i in range(0, len(subject.train), size)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factors: Factors = calculate_kronecker_factors(
            subject.model, class_logits(subject), loader, rank, WIDTH, ["lora"]
        )
    subject.model.zero_grad()
    subject.model.eval()
    return factors


def curvature(factors: Factors, *, low_rank: bool = True) -> torch.Tensor:
    """Return what the factors stand for, a dense block-diagonal (parameters, parameters)."""

    def whole(factor: torch.Tensor) -> torch.Tensor:
        return factor @ factor.mT if low_rank and factor.shape[0] >= WIDTH else factor

    return torch.block_diag(*(torch.kron(whole(s).contiguous(), whole(a).contiguous()) for a, s in factors.values()))


def package_jacobian(subject: Subject, rows: Sequence[EncodedRow]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the package's Jacobians (rows, classes, *weight) by parameter, and its logits (rows, classes)."""
    from bayesian_lora.main import jacobian_mean

    ids = list(subject.label_ids)
    with torch.no_grad():
        return jacobian_mean(
            subject.model, inputs_of(subject, rows), output_callback=lambda out: out.logits[:, -1, ids]
        )


def package_variance(
    subject: Subject, rows: Sequence[EncodedRow], factors: Factors, prior_variance: float
) -> torch.Tensor:
    """Return the package's covariance of the class logits, (rows, classes, classes)."""
    from bayesian_lora import cholesky_decompose_small_factors, variance

    jacobian, _ = package_jacobian(subject, rows)
    factors = cholesky_decompose_small_factors(copy.copy(factors), WIDTH, "cpu", torch.float64)
    s2 = torch.tensor(prior_variance, dtype=torch.float64)
    result: torch.Tensor = variance(
        inputs_of(subject, rows), jacobian, factors, s2, len(subject.label_ids), LORA_RANK, WIDTH, "cpu"
    )
    return result
