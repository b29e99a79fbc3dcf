"""Ours: the calibration labels correct a predictive through the last state (``laplora.conditioning``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.laplace import fitted
from benchmarks.evidence.outputs import Outputs
from laplora.conditioning.choice import BIASES, VARIANCES, choose_kernel
from laplora.conditioning.labelled import LabelledRows, log_contrasts
from laplora.conditioning.last_layer import LastStates
from laplora.decisions.temperature import fit_temperature
from laplora.linearised import class_probs, contrast_logits
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import Shift, tempering


def conditioned(variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES) -> Answers:
    """Return the method on top of MAP with a temperature, and the prior variances that it chooses from."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        rows, test = outputs.calibration(draw), outputs.test
        temperature = fit_temperature(rows.logits, rows.labels, rows.class_mask)
        moved = _shift(outputs, draw, class_probs(rows.logits / temperature, rows.class_mask), variances, biases)
        logits = test.logits / temperature + contrast_logits(moved.of(test.states))
        return Answer(class_probs(logits, test.class_mask))

    return answer


def laplace_conditioned(variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES) -> Answers:
    """Return the method on top of Laplace."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        rows, test, laplace = outputs.calibration(draw), outputs.test, fitted(outputs, draw, "all")
        before = posterior_predictive(rows.mean, laplace.calibration, rows.class_mask).probs
        moved = _shift(outputs, draw, before, variances, biases)
        mean = test.mean + tempering(laplace.test, test.class_mask) * moved.of(test.states)
        return Answer(posterior_predictive(mean, laplace.test, test.class_mask).probs)

    return answer


def _shift(
    outputs: Outputs, draw: int, before: torch.Tensor, variances: Sequence[float], biases: Sequence[float]
) -> Shift:
    """Return what the draw's labels add to the log probabilities ``before`` of its rows."""
    rows = outputs.calibration(draw)
    states = LastStates(rows.states, class_probs(rows.logits, rows.class_mask), len(outputs.train))
    labelled = LabelledRows(log_contrasts(before, rows.class_mask), rows.labels, rows.class_mask)
    choice = choose_kernel(states, labelled, variances, biases)
    return Shift(*choice.kernel.layer_weights(choice.weights))
