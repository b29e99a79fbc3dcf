"""Inputs with several labels as binary rows: one for each input and label, with the classes absent and present.

Under the likelihood ``bernoulli`` (``laplora.linearised``) the labels of an input share one pass, and each is a
question of its own: ``p_k = sigmoid(f_k)``. That is the softmax of the two logits ``(0, f_k)``, whose one contrast is
``-f_k / sqrt 2``. So the variance ``V_kk`` of a logit is ``V_kk / 2`` of the contrast. Everything that is fitted on, or
answers, rows of two classes then holds for the questions; covariances between labels do not matter to it.

Rows are in the order of the inputs, those of one input next to each other in the order of the labels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from laplora.posterior.binary import binary_means
from laplora.predictive.batch_outputs import BatchOutputs


def binary_logits(logits: torch.Tensor) -> torch.Tensor:
    """Return (rows * classes, 2) the logits of absent, 0, and present, of the labels' logits (rows, classes)."""
    present = logits.flatten()
    return torch.stack([torch.zeros_like(present), present], 1)


def binary_covariances(covariances: torch.Tensor) -> torch.Tensor:
    """Return (rows * classes, 1, 1) the contrasts' variances, of the labels' logits' (rows, classes, classes)."""
    return covariances.diagonal(dim1=1, dim2=2).flatten()[:, None, None] / 2


def binary_outputs(outputs: BatchOutputs) -> BatchOutputs:
    """Return the outputs of a batch as those of batch * classes binary rows."""
    logits = binary_logits(outputs.logits)
    return replace(
        outputs,
        logits=logits,
        label_mass=None
        if outputs.label_mass is None
        else outputs.label_mass.repeat_interleave(outputs.logits.shape[1]),
        class_mask=torch.ones_like(logits, dtype=torch.bool),
        mean=None if outputs.mean is None else binary_means(outputs.logits),
        covariance=None if outputs.covariance is None else binary_covariances(outputs.covariance),
    )
