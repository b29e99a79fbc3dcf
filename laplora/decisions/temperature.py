"""Post-hoc calibrators fitted on a calibration split: temperature scaling and split-conformal label sets.

Both see only outputs of the fitted model: temperature scaling the MAP logits, the label sets any probabilities.
"""

from __future__ import annotations

import math
import warnings

import torch

from laplora.errors import ConfigError, DataError, NonFiniteError

#: Bounds of the temperature.
TEMPERATURE_BOUNDS = (0.05, 100.0)

#: Weight of the temperature's prior, in rows. Without it the likelihood of separable rows (no mistake among them, as
#: often on an accurate model) grows without end as the temperature falls.
_PRIOR_ROWS = 1.0

_BISECTIONS = 80

#: Fewer calibration rows than this make every fitted value a guess.
FEWEST_ROWS = 20


class SmallCalibrationWarning(UserWarning):
    """A calibration split that is too small, or that lacks labels, for what is fitted on it to mean much."""


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor) -> float:
    """Return the temperature T that minimises the mean NLL of softmax(logits / T) plus ``temperature_penalty``.

    Temperature scaling (Guo et al., arXiv 1706.04599) with a prior that weighs as much as one row. Both terms are
    convex in 1 / T, so the derivative has one sign change, found by bisection in log T: one answer, to rounding,
    from any data.

    Args:
        logits: (rows, classes), nats; any value at impossible classes.
        labels: (rows,) int64.
        class_mask: (rows, classes) bool, true for the row's possible classes.

    Raises:
        DataError: no rows, shapes that do not fit, or a label that is not a possible class.
        NonFiniteError: NaN or infinity in a possible class's logit.
    """
    logits, mask = _checked(logits, class_mask)
    labels = checked_labels(labels, mask)
    # A common shift per row changes nothing; it makes logits / T safe at small T.
    logits = (logits - logits.masked_fill(~mask, -math.inf).amax(1, keepdim=True)).masked_fill(~mask, 0)
    of_label = logits.gather(1, labels[:, None])[:, 0]

    def slope(temperature: float) -> float:
        """Return the derivative by 1 / T: the expected logit minus the label's, mean over rows, and the prior's."""
        probs = torch.softmax((logits / temperature).masked_fill(~mask, -math.inf), 1)
        return float(((probs * logits).sum(1) - of_label).mean()) + _PRIOR_ROWS * (1 - temperature) / len(labels)

    low, high = TEMPERATURE_BOUNDS
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return math.sqrt(low * high)


def temperature_penalty(log_temperature: float, rows: int) -> float:
    """Return what the temperature's prior adds to the mean NLL of ``rows`` rows: (1 / T - 1 - log(1 / T)) / rows, nats.

    It is minus the logarithm of a Gamma(2, 1) density of 1 / T, but for a constant: 0 at T = 1, where it has the
    curvature of a standard normal prior of log T, and convex in 1 / T, which that prior is not.
    """
    return _PRIOR_ROWS * (math.expm1(-log_temperature) + log_temperature) / rows


def temperature_probs(logits: torch.Tensor, temperature: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return softmax(logits / temperature), (rows, classes) float64, exactly 0 at impossible classes.

    Raises:
        ConfigError: a temperature that is not a positive number.
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity in a possible class's logit.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"a temperature is a positive number, got {temperature}")
    logits, mask = _checked(logits, class_mask)
    return torch.softmax((logits / temperature).masked_fill(~mask, -math.inf), 1)


def conformal_threshold(probs: torch.Tensor, labels: torch.Tensor, level: float = 0.9) -> float:
    """Return the threshold q of split-conformal label sets (LAC: Sadinle, Lei and Wasserman, arXiv 1609.00451).

    With the score 1 - p(label), q is the ceil((rows + 1) level)-th smallest calibration score. If calibration
    and new rows are exchangeable, the set {k: 1 - p_k <= q} holds the true label with probability at least
    ``level``. With too few rows for the level, q is 1: the set holds every possible label.

    Args:
        probs: (rows, classes).
        labels: (rows,) int64.
        level: wanted coverage, in (0, 1).

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: no rows, shapes that do not fit, or a label out of range.
        NonFiniteError: NaN or infinity in ``probs``.
    """
    probs, mask = _checked(probs, torch.ones(probs.shape, dtype=torch.bool))
    return _conformal_quantile(1 - probs, checked_labels(labels, mask), level)


def prediction_sets(probs: torch.Tensor, threshold: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) bool: the labels in each row's conformal set, possible ones only.

    A set may be empty: then no label is as probable as the calibration rows' labels were.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity in ``probs``.
    """
    probs, mask = _checked(probs, class_mask)
    return (1 - probs <= threshold) & mask


def aps_threshold(
    probs: torch.Tensor, labels: torch.Tensor, level: float = 0.9, uniform: torch.Tensor | None = None
) -> float:
    """Return the threshold of adaptive prediction sets (APS: Romano, Sesia and Candes, arXiv 2006.02544).

    A label's score is the probability of the labels that are more probable than it, plus ``uniform`` times its
    own. Without ``uniform`` that is the least tau at which the paper's set ``S(x; tau)``, the most probable labels
    until they reach tau, takes the label in; with it, the paper's randomised score (its U is 1 - ``uniform``).
    The threshold is the same order statistic of the labels' scores as in ``conformal_threshold``, with the same
    promise; 1 when there are too few rows for the level.

    Args:
        probs: (rows, classes).
        labels: (rows,) int64.
        level: wanted coverage, in (0, 1).
        uniform: (rows,) drawn uniformly from [0, 1]; None is the deterministic variant.

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: no rows, shapes that do not fit, or a label out of range.
        NonFiniteError: NaN or infinity in ``probs``.
    """
    probs, mask = _checked(probs, torch.ones(probs.shape, dtype=torch.bool))
    return _conformal_quantile(_aps_scores(probs, uniform), checked_labels(labels, mask), level)


def aps_sets(
    probs: torch.Tensor, threshold: float, class_mask: torch.Tensor, uniform: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (rows, classes) bool: the labels in each row's adaptive prediction set, possible ones only.

    The deterministic set is never empty: the most probable label has the score 0. It grows where the
    probabilities are spread out, where ``prediction_sets`` may be empty; on average it is larger. The randomised
    one may be empty, covers no more than it promises, and differs from call to call.

    Args:
        threshold: from ``aps_threshold``, fitted in the same way.
        uniform: (rows,) drawn uniformly from [0, 1]; None is the deterministic variant, the one that is served.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity in ``probs``.
    """
    probs, mask = _checked(probs, class_mask)
    return (_aps_scores(probs.masked_fill(~mask, 0), uniform) <= threshold) & mask


def empirical_coverage(sets: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of rows whose set holds their label.

    Args:
        sets: (rows, classes) bool; labels: (rows,) int64.

    Raises:
        DataError: no rows, shapes that do not fit, or a label out of range.
    """
    if sets.ndim != 2 or sets.dtype != torch.bool:
        raise DataError(f"sets must be (rows, classes) bool, got {tuple(sets.shape)} {sets.dtype}")
    sets = sets.detach().cpu()
    labels = checked_labels(labels, torch.ones_like(sets))
    return float(sets.gather(1, labels[:, None]).double().mean())


def warn_about_labels(labels: torch.Tensor, classes: int, split: str, stacklevel: int = 3) -> None:
    """Warn when labels never occur in a calibration split: what is fitted there says nothing about them.

    Args:
        labels: (rows,) int64, 0 to ``classes - 1``.
        split: the split's name, for the message.
        stacklevel: of the warning; 3 is the caller of the function that calls this one.

    Warns:
        SmallCalibrationWarning: one label only, or labels without a row.
    """
    seen = sorted(set(labels.tolist()))
    missing = [k for k in range(classes) if k not in seen]
    if len(seen) == 1:
        message = (
            f"every row of {split!r} has the label {seen[0]}: temperature, sets and thresholds fitted on it reward "
            "answering that label, and mean nothing for others"
        )
    elif missing:
        message = (
            f"no row of {split!r} has the labels {missing[:8]}: the coverage and the risk promised for it do not hold "
            "for rows of these labels"
        )
    else:
        return
    warnings.warn(message, SmallCalibrationWarning, stacklevel=stacklevel)


def _conformal_quantile(scores: torch.Tensor, labels: torch.Tensor, level: float) -> float:
    """Return the ceil((rows + 1) level)-th smallest of the labels' scores, or 1 with too few rows."""
    if not 0 < level < 1:
        raise ConfigError(f"the level of a conformal set is in (0, 1), got {level}")
    of_label = scores.gather(1, labels[:, None])[:, 0].sort().values
    # 0.55 * 100 is 55.00000000000001 in floating point, which would be one rank too many.
    rank = math.ceil((len(of_label) + 1) * level - 1e-9)
    return float(of_label[rank - 1]) if rank <= len(of_label) else 1.0


def _aps_scores(probs: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """Return (rows, classes): the mass of the labels before each one, and ``uniform`` of its own, at most 1.

    Equal probabilities come in the order of the classes.
    """
    ordered, order = probs.sort(dim=1, descending=True, stable=True)
    before = (ordered.cumsum(1) - ordered).clamp(0, 1)
    before[:, 0] = 0  # exactly, so that the most probable label is in every deterministic set
    if uniform is not None:
        uniform = uniform.detach().to("cpu", torch.float64)
        if uniform.shape != probs.shape[:1] or not ((uniform >= 0) & (uniform <= 1)).all():
            raise DataError(f"uniform must be ({len(probs)},) numbers from 0 to 1, got {tuple(uniform.shape)}")
        before = (before + uniform[:, None] * ordered).clamp(0, 1)
    return torch.zeros_like(probs).scatter(1, order, before)


def _checked(values: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 values and the mask, on the CPU, after checking shapes and finiteness."""
    values, mask = values.detach().to("cpu", torch.float64), class_mask.detach().cpu()
    if values.ndim != 2 or mask.shape != values.shape or mask.dtype != torch.bool:
        raise DataError(
            f"expected (rows, classes) values and a bool mask of the same shape, got {tuple(values.shape)} and "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    if not mask.any(1).all():
        raise DataError("each row needs at least one possible class")
    if not values[mask].isfinite().all():
        raise NonFiniteError("a possible class has a NaN or infinite value")
    return values, mask


def checked_labels(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (rows,) int64 labels on the CPU after checking that each is a possible class of its row.

    Raises:
        DataError: no labels, labels that are not integers, or one that is not a possible class.
    """
    labels = labels.detach().cpu()
    if labels.shape != mask.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels must be ({len(mask)},) integers, got {tuple(labels.shape)} {labels.dtype}")
    if not len(labels):
        raise DataError("a calibrator needs at least one row, got 0")
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= mask.shape[1] or not mask.gather(1, labels[:, None]).all():
        raise DataError("every label must be one of its row's possible classes")
    return labels
