"""Ours: the calibration labels correct a predictive through the last state (``laplora.conditioning``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.laplace import fitted
from benchmarks.evidence.outputs import Outputs, Rows
from laplora.conditioning.choice import BIASES, choose_kernel
from laplora.conditioning.labelled import LabelledRows, log_contrasts
from laplora.conditioning.last_layer import LastStates
from laplora.decisions.temperature import fit_temperature
from laplora.linearised import class_probs, contrast_logits
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import Shift, tempering


def corrected(
    rows: Rows, trained: int, variances: Sequence[float] | None = None, biases: Sequence[float] = BIASES
) -> Shift:
    """Return how labelled rows correct MAP with the temperature that they choose.

    Args:
        trained: rows that trained the adapter.
    """
    temperature = fit_temperature(rows.logits, rows.labels, rows.class_mask)
    before = class_probs(rows.logits / temperature, rows.class_mask)
    return replace(_shift(rows, trained, before, variances, biases), temperature=temperature)


def corrected_probs(shift: Shift, rows: Rows) -> torch.Tensor:
    """Return the probabilities of rows under a correction, (rows, classes) float64."""
    return class_probs(rows.logits / shift.temperature + contrast_logits(shift.of(rows.states)), rows.class_mask)


def conditioned(variances: Sequence[float] | None = None, biases: Sequence[float] = BIASES) -> Answers:
    """Return the method on top of MAP with a temperature, and the prior variances that it chooses from."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        shift = corrected(outputs.calibration(draw), len(outputs.train), variances, biases)
        return Answer(corrected_probs(shift, outputs.test))

    return answer


def laplace_conditioned() -> Answers:
    """Return the method on top of Laplace."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        rows, test, laplace = outputs.calibration(draw), outputs.test, fitted(outputs, draw, "all")
        before = posterior_predictive(rows.mean, laplace.calibration, rows.class_mask).probs
        moved = _shift(rows, len(outputs.train), before, None, BIASES)
        mean = test.mean + tempering(laplace.test, test.class_mask) * moved.of(test.states)
        return Answer(posterior_predictive(mean, laplace.test, test.class_mask).probs)

    return answer


def _shift(
    rows: Rows, trained: int, before: torch.Tensor, variances: Sequence[float] | None, biases: Sequence[float]
) -> Shift:
    """Return what the rows' labels add to their log probabilities ``before``."""
    states = LastStates(rows.states, class_probs(rows.logits, rows.class_mask), trained)
    labelled = LabelledRows(log_contrasts(before, rows.class_mask), rows.labels, rows.class_mask)
    choice = choose_kernel(states, labelled, variances, biases)
    return Shift(*choice.kernel.layer_weights(choice.weights))
