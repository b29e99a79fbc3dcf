"""The loss that an adapter was trained with, as its fit sees it: each row's log-likelihood and curvature.

Per row, with p the softmax over the possible classes (``laplora.linearised``) and p_base the base's, which is constant,

    ``cross-entropy(y, p) + kl KL(p_base || p)``.

Up to the entropy of p_base this is the cross-entropy of the label and, ``kl`` times, of a label that is drawn from
p_base: as if every row were there ``1 + kl`` times. Both have the Hessian ``diag p - p p^T`` in the logits, so the
curvature is ``1 + kl`` times that of the labels. With class weights the first term is
``class_weighted_log_likelihood``, and only the second adds ``kl`` times the plain Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from laplora.classifier import base_probs
from laplora.errors import ConfigError
from laplora.fitting.settings import FitSettings
from laplora.jacobians.blocks import ContrastJacobians
from laplora.linearised import (
    class_weighted_hessian,
    class_weighted_log_likelihood,
    expected_log_likelihood,
    log_likelihood,
)
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut


def check_kl_to_base(settings: FitSettings, readout: ReadOut) -> None:
    """Raise ConfigError for a pull to the base's answer where the base has none, or none over the labels."""
    if not settings.kl_to_base:
        return
    if readout.likelihood != "categorical":
        raise ConfigError("kl_to_base: of labels that are each right or wrong on their own there is no distribution")
    if readout.trained:
        raise ConfigError(
            f"kl_to_base: {', '.join(readout.trained)} was trained with the adapter, and the base's own head, if it "
            "has one, knows nothing of the labels: leave it out"
        )


def recorded_kl_to_base(config: Mapping[str, Any]) -> float:
    """Return ``kl_to_base`` of the configuration that an artifact records, a run's or a fit's; 0 where it has none.

    Raises ConfigError for what is no such weight.
    """
    section = config.get("optimizer", config)
    value: object = section.get("kl_to_base", 0.0) if isinstance(section, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError("the manifest's configuration has a kl_to_base that is no number from 0: it was changed")
    return float(value)


class TrainingLoss:
    """The log-likelihood and the curvature of the rows of a batch under a fit's settings.

    Args:
        model: the adapted one, in evaluation mode.
    """

    def __init__(self, settings: FitSettings, model: Any, readout: ReadOut) -> None:
        self._model, self._readout, self._kl = model, readout, settings.kl_to_base
        self._weights = torch.tensor(settings.class_weights, dtype=torch.float64) if settings.class_weights else None

    def __call__(
        self, jacobians: ContrastJacobians, labels: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, ContrastJacobians]:
        """Return (batch,) float64 the rows' log-likelihood, nats, and the Jacobians with the curvature of the loss.

        The likelihood is that of the label, weighted by class weights, and ``kl`` times that of a label drawn from
        the base's answer, for which the base runs once more.

        Args:
            labels: as of ``laplora.linearised.log_likelihood``.
        """
        mask, logits = batch.class_mask, jacobians.logits
        if self._weights is None:
            of_rows, weights = log_likelihood(jacobians.likelihood, logits, labels, mask), jacobians.weights
        else:
            of_rows = class_weighted_log_likelihood(logits, labels, mask, self._weights)
            weights = class_weighted_hessian(logits, labels, mask, self._weights)
        if self._kl:
            of_base = base_probs(self._model, self._readout, batch)
            of_rows = of_rows + self._kl * expected_log_likelihood(of_base, logits, mask)
            plain = jacobians.curvature(mask)
            weights = (plain if weights is None else weights) + self._kl * plain
        return of_rows, replace(jacobians, weights=weights)
