"""One question in several orders of its options: its prompts, and the average of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from laplora.answers.prediction import Prediction, verdicts
from laplora.artifact.manifest import Manifest
from laplora.decisions.uncertainty import decompose, review_score
from laplora.errors import InvalidInputError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.predictive.kinds import PredictiveName
from laplora.predictive.order_average import average_by_input, average_orders, order_information
from laplora.prompts.option_order import (
    Order,
    OrderAverage,
    count_choices,
    option_orders,
    permute_choices,
    restore_logits,
)
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import PromptTemplate


@dataclass(frozen=True)
class OrderedRows:
    """One input's prompts.

    Attributes:
        rows: one for each order, the user's first.
        orders: ``orders[k][i]`` is the index, in the user's list, of the option that prompt k shows at place i.
    """

    rows: tuple[EncodedRow, ...]
    orders: tuple[Order, ...]


def encode_orders(
    template: PromptTemplate,
    inputs: Mapping[str, object],
    encode: Callable[[Mapping[str, object]], EncodedRow],
    which: OrderAverage = True,
) -> OrderedRows:
    """Return one input's prompts in the orders of ``option_orders``.

    Args:
        encode: turns one input into a row; which: of ``option_orders``.

    Raises:
        InvalidInputError: a template that takes no choices, an input without them, or what ``encode`` refuses.
    """
    if not template.takes_choices:
        raise InvalidInputError(
            f"order_average reorders a question's choices, and template {template.name!r} takes none: turn it off"
        )
    count = count_choices(inputs)
    first = encode(inputs)  # refuses what the template does, such as a single choice, before any order is made
    orders = option_orders(count, which)
    return OrderedRows((first, *(encode(permute_choices(inputs, order)) for order in orders[1:])), orders)


def average_answer(manifest: Manifest, question: OrderedRows, predictions: Sequence[Prediction]) -> Prediction:
    """Return the one answer of an input, in the user's order.

    The orders are equal members of a mixture: probabilities are averaged, those of every predictive; the centred
    logits have the mixture's mean and covariance; the epistemic part of the uncertainty holds what the orders
    disagree about. Flags, set and decision come from the averages by the artifact's thresholds.

    Temperature scaling of two orders has a temperature of its own, where the artifact says it.

    Args:
        predictions: of the prompts, in their order, all of one predictive.
    """
    record = manifest.predictives.get("temperature")
    if len(predictions) == 2 and record and record.reversed_temperature:
        predictions = [_tempered(p, record.reversed_temperature) for p in predictions]
    first, orders = predictions[0], question.orders
    name = first.predictive
    each = _table([p.probs for p in predictions])
    map_probs = _mean([p.map_probs for p in predictions], orders)
    spread = [p.probs_std for p in predictions if p.probs_std is not None]
    std = _table(spread) if spread else torch.zeros_like(each)
    # All of the entropy is aleatoric where there is one set of weights.
    expected = _table([p.total if p.aleatoric is None else p.aleatoric for p in predictions])
    served = average_orders(PosteriorPredictive(each, std, expected), orders, [len(orders)])
    probs = map_probs if name == "map" else served.probs
    split = decompose(served)

    others = {
        other: _mean([p.calibrated_probs[other] for p in predictions], orders)
        for other in manifest.predictives
        if other in first.calibrated_probs
    }

    def score_of(other: PredictiveName, other_probs: torch.Tensor) -> torch.Tensor:
        return review_score(manifest.predictives[other].thresholds, probs=other_probs, map_probs=map_probs)

    score = score_of(name, served.probs)
    # The largest does not depend on the order that was sent, and raises no flag that the one sent would not have.
    shares = [p.familiarity for p in predictions if p.familiarity is not None]
    familiarity = _table([max(shares)]) if shares else None
    verdict = verdicts(
        manifest,
        name,
        probs=probs,
        class_mask=torch.ones_like(probs, dtype=torch.bool),
        label_mass=_table([p.label_mass for p in predictions]).mean(0, keepdim=True),
        truncated=[any(p.truncated for p in predictions)],
        epistemic=split.epistemic,
        score=score,
        unfamiliar=manifest.unfamiliar(familiarity),
    )
    logit_mean, covariance = _logit_moments(predictions, orders)
    return replace(
        first,
        label_index=int(probs[0].argmax()),
        map_probs=map_probs[0].tolist(),
        probs=probs[0].tolist(),
        probs_std=served.std[0].tolist(),
        logit_mean=logit_mean.tolist(),
        logit_variance=None if covariance is None else covariance.diagonal().clamp_min(0).tolist(),
        logit_covariance=None if covariance is None else covariance.tolist(),
        total=float(split.total),
        aleatoric=float(split.aleatoric),
        epistemic=float(split.epistemic),
        label_mass=sum(p.label_mass for p in predictions) / len(predictions),
        score=float(score),
        prediction_set=[label for k, label in enumerate(first.labels) if verdict.sets[0, k]],
        flags=list(verdict.flags[0]),
        decision=verdict.decisions[0],
        familiarity=max(shares) if shares else None,
        calibrated_probs={other: averaged[0].tolist() for other, averaged in others.items()},
        calibrated_scores={other: float(score_of(other, averaged)) for other, averaged in others.items()},
        tokens=sum(p.tokens for p in predictions),
        truncated=any(p.truncated for p in predictions),
        orders=len(orders),
        order_information=float(order_information(each, orders, [len(orders)])),
    )


def _tempered(prediction: Prediction, temperature: float) -> Prediction:
    """Return a prompt's answer with another temperature of temperature scaling, whether it answers or stands beside."""
    probs = torch.softmax(_table([prediction.logit_mean]) / temperature, 1)
    if prediction.predictive == "temperature":
        return replace(prediction, probs=probs[0].tolist(), total=float(entropy(probs)))
    if "temperature" not in prediction.calibrated_probs:
        return prediction
    return replace(prediction, calibrated_probs={**prediction.calibrated_probs, "temperature": probs[0].tolist()})


def _table(rows: Sequence[float] | Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _mean(rows: Sequence[Sequence[float]], orders: Sequence[Order]) -> torch.Tensor:
    """Return (1, classes) the mean over the orders, in the user's."""
    return average_by_input(restore_logits(_table(rows), orders), [len(orders)])


def _logit_moments(
    predictions: Sequence[Prediction], orders: Sequence[Order]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return mean (classes,) of the centred logits over the orders, and covariance (classes, classes), nats squared.

    The covariance is the mean of the orders' plus the covariance of their means; None where no posterior was run.
    """
    means = restore_logits(_table([p.logit_mean for p in predictions]), orders)
    mean = means.mean(0)
    within = [p.logit_covariance for p in predictions]
    places = [torch.tensor(order).argsort() for order in orders]
    restored = [_table(v)[at][:, at] for v, at in zip(within, places, strict=True) if v is not None]
    if len(restored) < len(predictions):
        return mean, None
    centred = means - mean
    return mean, torch.stack(restored).mean(0) + centred.T @ centred / len(orders)
