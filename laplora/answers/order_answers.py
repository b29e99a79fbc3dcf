"""One question as it was sent and with its options in reverse: its two prompts, and the average of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from laplora.answers.prediction import Array, LabelArrays, Prediction, answers_of
from laplora.artifact.manifest import Manifest
from laplora.errors import InvalidInputError
from laplora.experts.adapter import point
from laplora.linearised import PosteriorPredictive, entropy
from laplora.predictive.batch_outputs import BatchOutputs
from laplora.predictive.order_average import average_orders, order_information
from laplora.prompts.option_order import reverse_choices
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import PromptTemplate


def encode_orders(
    template: PromptTemplate,
    inputs: Mapping[str, object],
    encode: Callable[[Mapping[str, object]], EncodedRow],
) -> tuple[EncodedRow, EncodedRow]:
    """Return one input's prompts: as it was sent, and with its choices in reverse.

    Args:
        encode: turns one input into a row.

    Raises:
        InvalidInputError: a template that takes no choices, an input without them, or what ``encode`` refuses.
    """
    if not template.takes_choices:
        raise InvalidInputError(
            f"order_average reorders a question's choices, and template {template.name!r} takes none: turn it off"
        )
    shown = reverse_choices(inputs)
    return encode(inputs), encode(shown)


def average_answer(manifest: Manifest, sent: Prediction, shown: Prediction) -> Prediction:
    """Return the one answer of an input, in the user's order.

    The orders are equal members of a mixture: probabilities are averaged, those of every predictive; the centred
    logits have the mixture's mean and covariance; the epistemic part of the uncertainty holds what the orders
    disagree about. Flags, set and decision come from the averages by the artifact's thresholds.

    Temperature scaling of two orders has a temperature of its own, where the artifact says it.

    Args:
        sent: of the prompt as it was sent; shown: of that with its choices in reverse, by the same predictive.
    """
    both = (sent, _in_users_order(shown))
    record = manifest.predictives.get("temperature")
    if record and record.reversed_temperature:
        both = _tempered(both[0], record.reversed_temperature), _tempered(both[1], record.reversed_temperature)
    one, other = (_predictive(p) for p in both)
    others = {
        name: point(_mean([p.arrays.calibrated_probs[name] for p in both]).log())
        for name in sent.arrays.calibrated_probs
    }
    at_map = [p.arrays.map_probs for p in both if p.arrays.map_probs is not None]
    # The largest does not depend on the order that was sent, and raises no flag that the one sent would not have.
    shares = [p.familiarity for p in both if p.familiarity is not None]
    masses = [p.label_mass for p in both if p.label_mass is not None]
    logit_mean, variance, covariance = _logit_moments(both)
    outputs = BatchOutputs(
        logits=_table([logit_mean]),
        label_mass=_mean(masses) if masses else None,
        class_mask=torch.ones(1, len(sent.labels), dtype=torch.bool),
        mean=None,
        familiarity=_table([max(shares)]) if shares else None,
    )
    row = EncodedRow((0,) * sum(p.tokens for p in both), len(sent.labels), any(p.truncated for p in both))
    (answer,) = answers_of(
        manifest,
        [row],
        outputs,
        {sent.predictive: average_orders(one, other), **others},
        sent.predictive,
        _mean(at_map) if at_map else None,
        spread=True,
    )
    if any(p.aleatoric is None and p.arrays.probs_std is not None for p in both):  # an order's parts are not known
        answer = replace(answer, aleatoric=None, epistemic=None)
    return replace(
        answer,
        logit_variance=variance,
        logit_covariance=covariance,
        orders=2,
        order_information=float(order_information(one.probs, other.probs)),
    )


def _in_users_order(p: Prediction) -> Prediction:
    """Return the answer to a prompt with its choices in reverse, every array by label in the user's order."""
    old, variance, covariance = p.arrays, p.logit_variance, p.logit_covariance
    arrays = LabelArrays(
        map_probs=None if old.map_probs is None else old.map_probs[::-1],
        probs=old.probs[::-1],
        probs_std=None if old.probs_std is None else old.probs_std[::-1],
        calibrated_probs={name: probs[::-1] for name, probs in old.calibrated_probs.items()},
    )
    return replace(
        p,
        arrays=arrays,
        logit_mean=p.logit_mean[::-1],
        logit_variance=None if variance is None else variance[::-1],
        logit_covariance=None if covariance is None else covariance[::-1, ::-1],
    )


def _predictive(p: Prediction) -> PosteriorPredictive:
    probs = _table([p.arrays.probs])
    std = torch.zeros_like(probs) if p.arrays.probs_std is None else _table([p.arrays.probs_std])
    # All of the entropy is aleatoric where there is one set of weights.
    return PosteriorPredictive(probs, std, _table([p.total if p.aleatoric is None else p.aleatoric]))


def _tempered(prediction: Prediction, temperature: float) -> Prediction:
    """Return a prompt's answer with another temperature of temperature scaling, whether it answers or stands beside."""
    probs = torch.softmax(_table([prediction.logit_mean]) / temperature, 1)
    arrays = prediction.arrays
    if prediction.predictive == "temperature":
        return replace(prediction, arrays=replace(arrays, probs=probs[0].numpy()), total=float(entropy(probs)))
    if "temperature" not in arrays.calibrated_probs:
        return prediction
    calibrated = {**arrays.calibrated_probs, "temperature": probs[0].numpy()}
    return replace(prediction, arrays=replace(arrays, calibrated_probs=calibrated))


def _mean(both: Sequence[float] | Sequence[Array]) -> torch.Tensor:
    return _table(both).mean(0, keepdim=True)


def _table(rows: Sequence[float] | Sequence[Array]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def _logit_moments(both: Sequence[Prediction]) -> tuple[Array, Array | None, Array | None]:
    """Return mean and variance (classes,) of the centred logits over the orders, and their covariance.

    The covariance (classes, classes), nats squared, is the mean of the orders' plus the covariance of their means, and
    so is its diagonal; None where the orders have none.
    """
    means = np.stack([p.logit_mean for p in both])
    centred = means - means.mean(0)
    variances = [p.logit_variance for p in both if p.logit_variance is not None]
    covariances = [p.logit_covariance for p in both if p.logit_covariance is not None]
    return (
        means.mean(0),
        np.mean(variances, 0) + (centred**2).mean(0) if variances else None,
        np.mean(covariances, 0) + centred.T @ centred / len(both) if covariances else None,
    )
