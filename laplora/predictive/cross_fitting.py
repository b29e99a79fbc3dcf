"""Cross-fitting: outputs of the calibration rows, each under parameters that were fitted without it.

Each of a few folds is held out in turn. So every row is used, and none judges itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from laplora.errors import ConfigError, DataError
from laplora.head import FOLDS, HeadError, fold_numbers
from laplora.head.folds import parted
from laplora.linearised import PosteriorPredictive
from laplora.metrics.checks import check_finite

#: Takes the row numbers to fit on and those to answer, both int64 and ascending, and returns the latter's outputs.
FitPredict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_fitted(
    fit_predict: FitPredict, rows: int, folds: int = FOLDS, seed: int = 0, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (rows, ...) the outputs of every row under parameters fitted without it, float64 on the CPU.

    Fold membership depends on the seed, the number of rows and their groups alone.

    Args:
        fit_predict: returns (answered, ...) of the same trailing shape for every fold.
        rows: of the calibration split; with fewer than ``folds``, each row is a fold.
        groups: (rows,) int64, rows of one number stay in one fold; None: each row is a group.

    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer than two groups, or outputs of another number of rows.
        NonFiniteError: NaN or infinity in an output.
    """
    order, parts = [], []
    for fitted, held_out in fold_rows(rows, folds, seed, groups):
        outputs = fit_predict(fitted, held_out).detach().to("cpu", torch.float64)
        if outputs.ndim < 1 or len(outputs) != len(held_out):
            raise DataError(f"fit_predict must return {len(held_out)} rows, got {tuple(outputs.shape)}")
        check_finite(outputs, "what fit_predict returned")
        order.append(held_out)
        parts.append(outputs)
    return torch.cat(parts)[torch.cat(order).argsort()]


def cross_fitted_predictive(
    fit_predict: Callable[[torch.Tensor, torch.Tensor], PosteriorPredictive],
    rows: int,
    folds: int = FOLDS,
    seed: int = 0,
    groups: torch.Tensor | None = None,
) -> PosteriorPredictive:
    """Return the predictive of every row under parameters fitted without it; arguments and errors as ``cross_fitted``.

    Args:
        fit_predict: returns the answered rows' predictive.
    """

    def outputs(fitted: torch.Tensor, held_out: torch.Tensor) -> torch.Tensor:
        predictive = fit_predict(fitted, held_out)
        return torch.cat([predictive.probs, predictive.std, predictive.expected_entropy[:, None]], 1)

    joined = cross_fitted(outputs, rows, folds, seed, groups)
    classes = joined.shape[1] // 2
    return PosteriorPredictive(joined[:, :classes], joined[:, classes:-1], joined[:, -1])


def rank_aligned(
    scores: Callable[[torch.Tensor], torch.Tensor],
    served: torch.Tensor,
    folds: int = FOLDS,
    seed: int = 0,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (rows, kinds) scores of each row under parameters fitted without it, on the served fit's scale, float64.

    Scores of different folds do not compare, since each fit has another scale. So a row's score is the served score of
    the rank that the row has among all rows under its fold's fit.

    Args:
        scores: takes the rows to fit on, int64 and ascending, and returns (rows, kinds) all rows' scores of that fit.
        served: (rows, kinds) their scores under the fit on all rows.
        groups: as of ``cross_fitted``.

    Raises:
        ConfigError, DataError, NonFiniteError: as ``cross_fitted``.
    """
    ordered = served.detach().to("cpu", torch.float64).sort(0).values
    if ordered.ndim != 2 or not ordered.isfinite().all():
        raise DataError(f"served scores must be finite, of shape (rows, kinds), got {tuple(served.shape)}")

    def outputs(fitted: torch.Tensor, held_out: torch.Tensor) -> torch.Tensor:
        of_fold = scores(fitted).detach().to("cpu", torch.float64)
        if of_fold.shape != ordered.shape:
            raise DataError(f"scores must return {tuple(ordered.shape)}, got {tuple(of_fold.shape)}")
        ranks = of_fold.argsort(dim=0, stable=True).argsort(dim=0)
        return ordered.gather(0, ranks[held_out])

    return cross_fitted(outputs, len(ordered), folds, seed, groups)


def fold_rows(
    rows: int, folds: int = FOLDS, seed: int = 0, groups: torch.Tensor | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each fold the rows to fit on and those held out, int64 and ascending; arguments as ``cross_fitted``.

    Folds are those of ``laplora.head.folds.fold_numbers``.
    """
    if folds < 2:
        raise ConfigError(f"cross-fitting needs at least two folds, got {folds}")
    try:
        return list(parted(fold_numbers(rows, folds, seed, groups)))
    except HeadError as error:
        raise DataError(str(error)) from None
