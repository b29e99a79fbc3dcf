"""The predictives an artifact can serve: how members and their posteriors become one row's probabilities.

A predictive is an equal mixture over members, each a Gaussian over the contrasts, all divided by one temperature T:

    probs = 1/M sum_m E[softmax(Q z / T)],   z ~ N(mean_m, covariance_m)

Without covariances each member is a point: an ensemble average over checkpoints (Lakshminarayanan et al., arXiv
1612.01474) or dropout masks (Gal and Ghahramani, arXiv 1506.02142). With them it is a mixture of Laplace
approximations (Eschenhagen et al., arXiv 2111.03577).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

from laplora.decisions.temperature import TEMPERATURE_BOUNDS, fit_temperature, temperature_penalty
from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, class_counts, class_probs, contrast_logits, entropy
from laplora.metrics.checks import check_finite, checked_labels
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.label_draws import MANY_CLASSES, LabelDraws
from laplora.predictive.minimum import grid_minimum
from laplora.predictive.two_classes import two_class_probs

Members = Literal["single", "distilled", "conditioned", "laplace_conditioned", "checkpoints", "dropout"]
#: Predictives whose log probabilities labels correct, and kinds of members of the same names.
Corrected = Literal["conditioned", "laplace_conditioned"]
PredictiveName = Literal[
    "map",
    "temperature",
    "conditioned",
    "fast",
    "laplace",
    "laplace_temperature",
    "laplace_conditioned",
    "ensemble",
    "ensemble_temperature",
    "laplace_ensemble",
    "mc_dropout",
]

#: Points of the search for a temperature, over ``TEMPERATURE_BOUNDS``, before it is refined.
_GRID = 39


@dataclass(frozen=True)
class PredictiveSpec:
    """What a predictive averages over.

    Attributes:
        members: the adapters it mixes. The trained one alone (``single``); with a covariance predicted from its forward
            pass (``distilled``); corrected by labels (``conditioned``, ``laplace_conditioned``); checkpoints of several
            seeds or steps; or the trained one under fixed dropout masks.
        covariance: whether each member carries its posterior over the contrasts.
        temperature: divides every sampled logit; 1 where none is fitted.

    Raises:
        ConfigError: a temperature that is not a positive number.
    """

    members: Members
    covariance: bool
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"a temperature is a positive number, got {self.temperature}")


#: Every predictive by name, from the cheapest to serve to the dearest; those in ``TEMPERED`` with T to be fitted.
PREDICTIVES: Mapping[PredictiveName, PredictiveSpec] = MappingProxyType(
    {
        "map": PredictiveSpec("single", covariance=False),
        "temperature": PredictiveSpec("single", covariance=False),
        "conditioned": PredictiveSpec("conditioned", covariance=False),
        "fast": PredictiveSpec("distilled", covariance=True),
        "laplace": PredictiveSpec("single", covariance=True),
        "laplace_temperature": PredictiveSpec("single", covariance=True),
        "laplace_conditioned": PredictiveSpec("laplace_conditioned", covariance=True),
        "ensemble": PredictiveSpec("checkpoints", covariance=False),
        "ensemble_temperature": PredictiveSpec("checkpoints", covariance=False),
        "laplace_ensemble": PredictiveSpec("checkpoints", covariance=True),
        "mc_dropout": PredictiveSpec("dropout", covariance=False),
    }
)

#: The predictives whose temperature is fitted on the calibration split; the others' is 1.
TEMPERED: frozenset[PredictiveName] = frozenset(
    {"temperature", "conditioned", "laplace_temperature", "ensemble_temperature"}
)

#: The predictives that the labels of the calibration rows correct (``laplora.predictive.shift``).
CONDITIONED: tuple[Corrected, ...] = ("conditioned", "laplace_conditioned")


def predictive_spec(name: PredictiveName, temperature: float) -> PredictiveSpec:
    """Return the named predictive with its fitted temperature; ConfigError for one but 1 where it has none."""
    if temperature != 1.0 and name not in TEMPERED:
        raise ConfigError(f"the predictive {name!r} has no temperature, got {temperature}")
    return replace(PREDICTIVES[name], temperature=temperature)


def predictive_probs(
    spec: PredictiveSpec, means: torch.Tensor, covariances: torch.Tensor | None, class_mask: torch.Tensor
) -> PosteriorPredictive:
    """Return the mean, spread and expected entropy of the mixture, float64 on the CPU.

    ``std`` is from the mixture's second moments, ``Var p = mean_m Var_m p + Var_m E_m p``; ``expected_entropy`` is the
    members' mean. One member without covariance is ``class_probs``, one with it is ``posterior_predictive``, to the
    last bit.

    Args:
        means: (members, batch, classes - 1) ``Q^T f`` of every member, nats.
        covariances: (members, batch, classes - 1, classes - 1), nats^2; None unless the spec has covariances.
        class_mask: (batch, classes) bool, true for the possible classes: the first c >= 2 of each row.

    Raises:
        ConfigError: covariances given without need, or missing; more than one member where the trained adapter alone
            answers.
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity at a possible class.
        FactorizationError: a covariance that is not positive semi-definite beyond rounding.
    """
    if spec.covariance != (covariances is not None):
        wanted = "needs" if spec.covariance else "takes no"
        raise ConfigError(f"this predictive {wanted} covariances")
    means, mask = _checked_means(means, class_mask)
    if spec.members not in ("checkpoints", "dropout") and len(means) != 1:
        raise ConfigError(
            f"the members are {spec.members!r}, but {len(means)} means were given: use checkpoints or dropout"
        )
    _check_covariances(means, covariances)
    flat, masks = means.flatten(0, 1) / spec.temperature, mask.repeat(len(means), 1)
    if covariances is None:
        probs = class_probs(contrast_logits(flat), masks)
        each = PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    else:
        spread = covariances.detach().to("cpu", torch.float64).flatten(0, 1) / spec.temperature**2
        each = posterior_predictive(flat, spread, masks)
    return each if len(means) == 1 else _mixture(each, len(means))


def fit_predictive_temperature(
    means: torch.Tensor, covariances: torch.Tensor | None, labels: torch.Tensor, class_mask: torch.Tensor
) -> float:
    """Return the temperature T that minimises the mean NLL of the mixture of ``softmax(z / T)`` and its prior's term.

    It divides each sampled logit, inside the average (Rahaman and Thiery, arXiv 2007.08792). One member without
    covariance is temperature scaling, by ``fit_temperature``. Otherwise the NLL need not be convex: a grid over
    ``TEMPERATURE_BOUNDS`` even in log T, then Brent's method around its best point to 1e-6.

    Args:
        means: (members, rows, classes - 1); covariances: as for ``predictive_probs``, or None.
        labels: (rows,) int64; class_mask: (rows, classes) bool.

    Raises:
        DataError: no rows, shapes that do not fit, or a label that is not a possible class.
        NonFiniteError, FactorizationError: as ``predictive_probs``.
    """
    means, mask = _checked_means(means, class_mask)
    if len(means) == 1 and covariances is None:
        return fit_temperature(contrast_logits(means[0]), labels, mask)
    labels = checked_labels(labels, mask)
    _check_covariances(means, covariances)
    integral = _label_integral(means, covariances, labels, mask)

    def penalised_nll(log_temperature: float) -> float:
        picked = integral(math.exp(log_temperature)).clamp_min(torch.finfo(torch.float64).tiny)
        return -float(picked.log().mean()) + temperature_penalty(log_temperature, len(labels))

    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    return math.exp(grid_minimum(penalised_nll, low, high, points=_GRID, tolerance=1e-6))


def _label_integral(
    means: torch.Tensor, covariances: torch.Tensor | None, labels: torch.Tensor, mask: torch.Tensor
) -> Callable[[float], torch.Tensor]:
    """Return what gives (rows,) the mixture's mean probability of each row's label at a temperature."""
    if covariances is not None and mask.shape[1] == 2:
        flat, spread = means.flatten(0, 1), covariances.detach().to("cpu", torch.float64).flatten(0, 1)
        each = labels.repeat(len(means))

        def of_two(temperature: float) -> torch.Tensor:
            return two_class_probs(flat / temperature, spread / temperature**2, each).view(len(means), -1).mean(0)

        return of_two
    if covariances is not None and mask.shape[1] > MANY_CLASSES:
        draws = [LabelDraws.of(mean, spread, labels, mask) for mean, spread in zip(means, covariances, strict=True)]
        return lambda temperature: torch.stack([d.probs(temperature) for d in draws]).mean(0)

    def of_answers(temperature: float) -> torch.Tensor:
        spec = PredictiveSpec("checkpoints", covariances is not None, temperature)
        return predictive_probs(spec, means, covariances, mask).probs.gather(1, labels[:, None])[:, 0]

    return of_answers


def _checked_means(means: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 means, exactly 0 at the contrasts of impossible classes, and the mask, both on the CPU."""
    means, mask = means.detach().to("cpu", torch.float64), class_mask.detach().cpu()
    class_counts(mask)
    batch, classes = mask.shape
    if means.ndim != 3 or not len(means) or means.shape[1:] != (batch, classes - 1):
        raise DataError(
            f"means must be (members, {batch}, {classes - 1}) with at least one member, got {tuple(means.shape)}"
        )
    means = means.masked_fill(~mask[:, 1:], 0)  # the contrasts of a prefix of the classes are a prefix too
    check_finite(means, "the members' logits")
    return means, mask


def _check_covariances(means: torch.Tensor, covariances: torch.Tensor | None) -> None:
    if covariances is not None and covariances.shape != (*means.shape, means.shape[-1]):
        raise DataError(f"covariances must be {(*means.shape, means.shape[-1])}, got {tuple(covariances.shape)}")


def _mixture(each: PosteriorPredictive, members: int) -> PosteriorPredictive:
    """Return the moments of the equal mixture of members that lie one after another."""
    moments = (each.probs, each.std, each.expected_entropy)
    probs, std, entropies = (v.view(members, len(v) // members, *v.shape[1:]) for v in moments)
    mean = probs.mean(0)
    # About the mean: E[p^2] - E[p]^2 would lose every digit where the members agree.
    variance = std.square().mean(0) + (probs - mean).square().mean(0)
    return PosteriorPredictive(mean / mean.sum(1, keepdim=True), variance.sqrt(), entropies.mean(0))
