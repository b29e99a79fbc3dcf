"""The symbols of the method, in one place: contrasts Q, the Hessian Lambda and its root, class probabilities.

The class logits are linearised in the LoRA weights around the trained ones, ``f(theta) = f + J (theta - theta*)`` (Yang
et al., arXiv 2308.13111, section 2). The softmax does not see a common shift of the logits, so everything lives in the
C-1 contrasts ``z = Q^T f``:

    ``p = softmax(f)``,   ``f = Q z`` up to that shift,   ``Lambda = Q^T (diag p - p p^T) Q``.

``Lambda`` is the Hessian of a row's negative log-likelihood in ``z``, so the generalised Gauss-Newton matrix (GGN) of
the training loss is ``H = sum_n J_n^T Lambda_n J_n`` with ``J_n = dz_n / dtheta``. Under the posterior of a prior
precision ``lambda`` the contrasts are Gaussian, ``z ~ N(Q^T f, J (lambda I + H)^-1 J^T)`` (equation 12 there).

If several labels of a row may be right (``bernoulli``), each has a probability of its own, ``p = sigmoid(f)``. The
logits have no common shift then, and all of the above holds with ``Q`` the identity and ``Lambda = diag(p (1 - p))``.

``class_mask`` is (batch, classes) bool everywhere: true for a row's possible classes, the first c >= 2 of each row.
``logits`` are (batch, classes), nats, any value at impossible classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from laplora.errors import ConfigError, DataError

#: The likelihood of labels given logits: one label of a row is right (softmax), or several (one sigmoid each).
Likelihood = Literal["categorical", "bernoulli"]


@dataclass(frozen=True)
class PosteriorPredictive:
    """Moments of the class probabilities under the posterior, all float64 on the CPU.

    Attributes:
        probs: (batch, classes) mean probability; exactly 0 at impossible classes; rows sum to 1.
        std: (batch, classes) standard deviation of the probability.
        expected_entropy: (batch,) mean entropy of the sampled probabilities, nats.
    """

    probs: torch.Tensor
    std: torch.Tensor
    expected_entropy: torch.Tensor

    def __len__(self) -> int:
        return self.probs.shape[0]


@lru_cache(maxsize=4)
def contrasts(classes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return Q (classes, classes - 1): Helmert contrasts, orthonormal columns orthogonal to the ones vector.

    Column k compares class k + 1 with the mean of the classes before it. So the contrasts of a row with fewer possible
    classes are a prefix of the contrasts of all of them. It is kept for the next call: do not write into it. Raises
    ConfigError for fewer than two classes.
    """
    if classes < 2:
        raise ConfigError(f"contrasts need at least two classes, got {classes}")
    with torch.inference_mode(False):
        k = torch.arange(1, classes, dtype=torch.float64, device="cpu")
        scale = (k * (k + 1)).sqrt()
        q = (1 / scale).repeat(classes, 1).triu_()
        q.diagonal(-1).copy_(-k / scale)
        return q.to(dtype)


def directions_of(likelihood: Likelihood, classes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return ``Q^T`` (directions, classes): the directions in the logits that the likelihood sees."""
    return contrasts(classes, dtype).T if likelihood == "categorical" else torch.eye(classes, dtype=dtype)


def mean_of(likelihood: Likelihood, logits: torch.Tensor) -> torch.Tensor:
    """Return ``Q^T f`` (..., directions), nats, of logits (..., classes) under either likelihood."""
    return contrast_mean(logits) if likelihood == "categorical" else logits


def contrast_mean(logits: torch.Tensor) -> torch.Tensor:
    """Return ``Q^T f`` (..., classes - 1) of logits (..., classes), nats."""
    return logits @ contrasts(logits.shape[-1], logits.dtype).to(logits.device)


def contrast_logits(contrast_mean: torch.Tensor) -> torch.Tensor:
    """Return ``Q z`` (..., classes): the logits with these contrasts (..., classes - 1) that sum to 0, nats."""
    return contrast_mean @ contrasts(contrast_mean.shape[-1] + 1, contrast_mean.dtype).to(contrast_mean.device).T


def class_log_probs(logits: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (batch, classes) float64 the log-softmax over each row's possible classes, -inf at the others, nats."""
    return logits.double().masked_fill(~class_mask, -torch.inf).log_softmax(-1)


def most_probable(labels: torch.Tensor) -> torch.Tensor:
    """Return (rows,) int64 labels: of soft ones, as of ``cross_entropy``, the most probable, the first of equal ones.

    It is what counts as right: in accuracy, thresholds, label sets and the ranking of mistakes.
    """
    return labels.argmax(1) if labels.is_floating_point() else labels


def targets_of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (rows, classes) float64 the labels' probabilities: soft ones as they are, 1 at a hard one."""
    if labels.is_floating_point():
        return labels.double()
    return torch.nn.functional.one_hot(labels, classes).double()


def cross_entropy(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (rows,) the cross-entropy of labels, nats: of hard ones the negative log-likelihood.

    Args:
        log_probs: (rows, classes), -inf only where a label has no probability.
        labels: (rows,) int64; or soft, the labels' probabilities, (rows, classes) of a float type that sum to 1.
    """
    if not labels.is_floating_point():
        return -log_probs.gather(1, labels[:, None])[:, 0]
    return -(labels * log_probs.masked_fill(labels == 0, 0)).sum(1)


def log_likelihood(
    likelihood: Likelihood, logits: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> torch.Tensor:
    """Return (batch,) float64 the log-likelihood of each row's labels, nats, summed over them.

    Args:
        labels: (batch,) int64, or soft (``cross_entropy``); under ``bernoulli`` (batch, classes) int64, 1 at the labels
            that are right.
    """
    if likelihood == "categorical":
        return -cross_entropy(class_log_probs(logits, class_mask), labels)
    signed = torch.where(labels == 1, logits, -logits).double()
    return torch.nn.functional.logsigmoid(signed).masked_fill(~class_mask, 0).sum(1)


def class_probs(logits: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (batch, classes) float64 the softmax over each row's possible classes, exactly 0 at the others."""
    return logits.double().masked_fill(~class_mask, -torch.inf).softmax(-1)


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float64 the entropy of each row of ``probs`` (batch, classes), nats; 0 ln 0 is 0."""
    terms: torch.Tensor = torch.special.entr(probs.double())
    return terms.sum(1)


def contrast_hessian(logits: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return ``Lambda`` (batch, classes - 1, classes - 1) float64, exact over the classes."""
    probs = class_probs(logits, class_mask)
    transform = contrasts(logits.shape[-1], torch.float64).to(logits.device)
    centred = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    return transform.T @ centred @ transform


def class_counts(class_mask: torch.Tensor) -> torch.Tensor:
    """Return (batch,) int64 how many classes are possible in each row; DataError for what is no ``class_mask``."""
    if class_mask.ndim != 2 or class_mask.dtype != torch.bool:
        raise DataError(f"class_mask must be (batch, classes) bool, got {tuple(class_mask.shape)} {class_mask.dtype}")
    counts = class_mask.sum(1)
    prefix = torch.arange(class_mask.shape[1], device=class_mask.device) < counts[:, None]
    if not torch.equal(class_mask, prefix) or (counts < 2).any():
        raise DataError("each row of class_mask must be true for its first classes, at least two of them")
    return counts
