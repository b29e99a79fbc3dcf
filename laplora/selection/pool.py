"""A pool's rows as a posterior or their last states see them: a pass through the model, few numbers kept of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from laplora.classifier import batches
from laplora.errors import ConfigError
from laplora.linearised import hessian_root
from laplora.metrics.checks import check_finite
from laplora.posterior.base import Posterior
from laplora.posterior.joint import JointPosterior
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection.sketch import FeatureMap

#: Bytes that the features of a pool may take.
MEMORY_BYTES = 2 << 30

#: Watches the batches of a pass, as a progress bar does.
Track = Callable[[Sequence[list[int]]], Iterator[list[int]]]


class FeaturePass:
    """The features of a pool, made batch by batch, so that who shares the device can run between two batches.

    Attributes:
        features: (rows, directions, features) float32 whose products are the joint covariance of the contrasts.
    """

    def __init__(self, predictor: Predictor, rows: Sequence[EncodedRow]) -> None:
        """Begin.

        Raises:
            ConfigError: a posterior without a covariance between rows, or more rows than there is memory for.
        """
        self._predictor, self._rows = predictor, rows
        self._posterior = _joint(predictor.posterior)
        self._map = FeatureMap.of(self._posterior, predictor.precisions)
        directions = predictor.class_count - (predictor.artifact.manifest.likelihood == "categorical")
        needed = 4 * len(rows) * directions * self._map.size
        if needed > MEMORY_BYTES:
            raise ConfigError(
                f"{len(rows)} rows of {directions} contrasts take {needed:.3g} bytes, and the limit is "
                f"{MEMORY_BYTES:.3g}: give fewer rows, or choose by entropy"
            )
        self.features = torch.zeros(len(rows), directions, self._map.size)

    def run(self, index: Sequence[int]) -> None:
        """Fill in the features of some rows, which run as one batch; NonFiniteError: NaN or infinity in one."""
        jacobians = self._predictor.jacobians([self._rows[i] for i in index])
        found = self._map.features(jacobians, self._posterior.project(jacobians)).cpu()
        check_finite(found, "a Jacobian of these rows")
        self.features[list(index)] = found


def pool_features(predictor: Predictor, rows: Sequence[EncodedRow], batch_size: int, track: Track) -> torch.Tensor:
    """Return the features of a pool; errors as of ``FeaturePass``."""
    done = FeaturePass(predictor, rows)
    for index in track(batches(rows, batch_size)):
        done.run(index)
    return done.features


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


def _joint(posterior: Posterior) -> JointPosterior:
    """Return a posterior whose rows vary together; ConfigError where it has no covariance between them."""
    if isinstance(posterior, JointPosterior):
        return posterior
    raise ConfigError(
        "choosing rows by information takes the covariance between rows, which this posterior of structure "
        f"{posterior.structure!r} does not have: use structure joint_core, joint or exact, and so few classes that "
        "every contrast is computed"
    )
