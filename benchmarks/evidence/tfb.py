"""Training-free Bayesianisation: noise around a trained adapter, as large as its own answers bear (Shi et al., arXiv
2412.05723).

The posterior is Gaussian over ``lora_A``, low-rank and isotropic in the update (their section 4.1 and theorem 4.1). Its
size is the largest under which the NLL of MAP's own answers of some rows rises by no more than a tolerance (their
section 4.2, with pseudo-labels): no label is needed. What they leave open is as in the code that their results come
from, ``scripts/tfblora/mle.sh`` of github.com/Wang-ML-Lab/bayesian-peft: ten samples, and a rise of 0.3 % a row of 500
rows. Their text says 0.3 % in all, under which hardly any noise would be left. Two things differ. The rows are 100 that
nobody labelled, not training rows; and a sigma that is too large is never returned, where theirs is the smallest such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

#: Rows that the tolerance is of, samples of each trial and of the answer.
ANCHORS, SAMPLES = 100, 10
#: Trials of the bisection, and the range of sigma: the defaults of their command.
_TRIALS, _SMALLEST, _LARGEST = 8, 0.001, 0.2
#: How far the NLL of MAP's own answers may rise, as a share of it.
ALLOWED_RISE = 0.003 * 500

Weights = dict[str, torch.Tensor]


def isotropic_sample(trained: Mapping[str, torch.Tensor], sigma: float, draw: torch.Generator) -> Weights:
    """Return weights by block name, with noise of the same size in every direction of the update's column space.

    With ``B = U diag(d) V^T`` the update is ``(U diag(d)) (V^T A)``. Row i of ``V^T A`` gets noise of deviation
    ``sigma / d_i``, so that the update's noise is sigma along each column of U. LoRA's factor alpha / r is not in it.
    """
    weights = dict(trained)
    for name, b in trained.items():
        if name.endswith(".lora_B"):
            a = name.removesuffix("B") + "A"
            _, values, right = torch.linalg.svd(b, full_matrices=False)
            noise = torch.randn(trained[a].shape, generator=draw) * sigma / (values[:, None] + 1e-6)
            weights[a] = trained[a] + right.T @ noise
    return weights


def largest_sigma(
    logits: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], trained: Mapping[str, torch.Tensor], seed: int
) -> float:
    """Return the largest sigma, by bisection, under which MAP's own answers stay likely enough.

    Args:
        logits: of the anchor rows under some weights, (rows, classes).
    """
    before = logits(trained).double().log_softmax(1)
    answers = before.argmax(1, keepdim=True)
    allowed = (1 + ALLOWED_RISE) * float(-before.gather(1, answers).mean())

    def nll(sigma: float) -> float:
        draw = torch.Generator().manual_seed(seed)
        samples = (isotropic_sample(trained, sigma, draw) for _ in range(SAMPLES))
        mixed = torch.stack([logits(weights).double().softmax(1) for weights in samples]).mean(0)
        return float(-mixed.gather(1, answers).clamp_min(1e-12).log().mean())

    low, high = _SMALLEST, _LARGEST
    for _ in range(_TRIALS):
        sigma = (low + high) / 2
        low, high = (sigma, high) if nll(sigma) <= allowed else (low, sigma)
    return low
