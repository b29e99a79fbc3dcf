"""A pool's rows as a posterior or their last states see them: a pass through the model, few numbers kept of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from laplora.classifier import batches
from laplora.errors import ConfigError
from laplora.linearised import hessian_root
from laplora.posterior.between_rows import joint_of
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection.sketch import FeatureMap

#: Bytes that the features of a pool may take.
MEMORY_BYTES = 2 << 30

#: Watches the batches of a pass, as a progress bar does.
Track = Callable[[Sequence[list[int]]], Iterator[list[int]]]


def pool_features(predictor: Predictor, rows: Sequence[EncodedRow], batch_size: int, track: Track) -> torch.Tensor:
    """Return (rows, directions, features) float32 whose products are the joint covariance of the contrasts.

    Raises:
        ConfigError: a posterior without a covariance between rows, or more rows than there is memory for.
    """
    posterior = joint_of(predictor.posterior, "choosing rows by information")
    chart = FeatureMap.of(posterior, predictor.precisions)
    directions = predictor.class_count - (predictor.artifact.manifest.likelihood == "categorical")
    needed = 4 * len(rows) * directions * chart.size
    if needed > MEMORY_BYTES:
        raise ConfigError(
            f"{len(rows)} rows of {directions} contrasts take {needed:.3g} bytes, and the limit is "
            f"{MEMORY_BYTES:.3g}: give fewer rows, or choose by entropy"
        )
    result = torch.zeros(len(rows), directions, chart.size)
    for index in track(batches(rows, batch_size)):
        jacobians = predictor.jacobians([rows[i] for i in index])
        result[index] = chart.features(jacobians, posterior.project(jacobians)).cpu()
    return result


def pool_states(predictor: Predictor, rows: Sequence[EncodedRow], batch_size: int, track: Track) -> torch.Tensor:
    """Return (rows, width) float32, what each row's logits are read from, by forward passes."""
    states: dict[int, torch.Tensor] = {}
    for index in track(batches(rows, batch_size)):
        states.update(zip(index, predictor.states([rows[i] for i in index]).flatten(1).float().cpu(), strict=True))
    return torch.stack([states[i] for i in range(len(rows))])


def loss_roots(probs: Sequence[Sequence[float]], classes: int, *, several: bool) -> torch.Tensor:
    """Return (rows, directions, directions) float64, the root of each row's ``Lambda`` at its predicted probabilities.

    Args:
        probs: by label of each row, which may have fewer than ``classes`` possible ones.
        several: whether several labels of a row may be right, each with a probability of its own.
    """
    if several:
        each = torch.tensor(probs, dtype=torch.float64)
        return torch.diag_embed((each * (1 - each)).clamp_min(0).sqrt())
    logits = torch.zeros(len(probs), classes, dtype=torch.float64)
    mask = torch.zeros(len(probs), classes, dtype=torch.bool)
    for i, row in enumerate(probs):
        mask[i, : len(row)] = True
        logits[i, : len(row)] = torch.tensor(row, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny).log()
    return hessian_root(logits, mask)
