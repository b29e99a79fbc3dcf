"""Rivals that map a model's probabilities to better ones, beside temperature scaling. Their libraries fit them.

A ``fit`` takes log probabilities (rows, classes) float64 and labels (rows,) int64. It returns a function that maps log
probabilities (asked, classes) to calibrated ones, float64, finite; each row's probabilities sum to one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from laplora.decisions.temperature import fit_temperature, temperature_probs

Array = np.ndarray[Any, Any]
Calibrated = Callable[[torch.Tensor], torch.Tensor]
Fit = Callable[[torch.Tensor, torch.Tensor], Calibrated]


def tempered(log_probs: torch.Tensor, labels: torch.Tensor) -> Calibrated:
    """Return temperature scaling, the reference, fitted to rows."""
    temperature = fit_temperature(log_probs, labels, log_probs.isfinite())
    return lambda asked: temperature_probs(asked, temperature, asked.isfinite()).log()


def _of_probmetrics(name: str) -> Fit:
    """Return the fit of a calibrator of probmetrics, with its defaults.

    Both that are used start from temperature scaling with a Laplace-smoothed answer. A ridge pulls what they add to 0.
    It weighs classes / rows, or classes * (classes - 1) / rows for entries off the diagonal.
    """

    def fit(log_probs: torch.Tensor, labels: torch.Tensor) -> Calibrated:
        from probmetrics.calibrators import get_calibrator

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = get_calibrator(name).fit(_probs(log_probs), labels.numpy())
        return lambda asked: _log(fitted.predict_proba(_probs(asked)))

    return fit


def _one_vs_rest(fit_one: Callable[[Array, Array], Callable[[Array], Array]]) -> Fit:
    """Return the fit that calibrates each class against all others and divides by the sum.

    A class that no row has, or every row, keeps its probability. A share of ``1 / (rows + 1)`` is spread over all
    classes, as probmetrics' ``MixtureCalibrator`` does, so no answer is 0.

    Args:
        fit_one: maps probabilities (rows,) and whether each row has the class (rows,) to the calibrating function.
    """

    def fit(log_probs: torch.Tensor, labels: torch.Tensor) -> Calibrated:
        probs, share, of_class = _probs(log_probs), 1 / (len(labels) + 1), list[Callable[[Array], Array]]()
        for number in range(probs.shape[1]):
            has = (labels == number).numpy()
            both = has.any() and not has.all()
            with warnings.catch_warnings():  # betacal changes the filters of the whole process
                of_class.append(fit_one(probs[:, number], has.astype(float)) if both else lambda given: given)

        def answer(asked: torch.Tensor) -> torch.Tensor:
            columns = zip(of_class, _probs(asked).T, strict=True)
            alone = np.stack([one(given) for one, given in columns], 1) + 1e-30  # where all say 0: equal
            return _log((1 - share) * alone / alone.sum(1, keepdims=True) + share / len(of_class))

        return answer

    return fit


def _beta(probs: Array, has: Array) -> Callable[[Array], Array]:
    """Fit beta calibration of three parameters (Kull et al., AISTATS 2017)."""
    from betacal import BetaCalibration

    predict: Callable[[Array], Array] = BetaCalibration("abm").fit(probs, has).predict
    return predict


def _isotonic(probs: Array, has: Array) -> Callable[[Array], Array]:
    from sklearn.isotonic import IsotonicRegression

    predict: Callable[[Array], Array] = IsotonicRegression(out_of_bounds="clip").fit(probs, has).predict
    return predict


def _probs(log_probs: torch.Tensor) -> Array:
    """Return probabilities as libraries check them: rows that sum to one."""
    probs: Array = torch.softmax(log_probs.double(), 1).numpy()
    return probs


def _log(probs: Array) -> torch.Tensor:
    return torch.log_softmax(torch.from_numpy(probs).double().clamp(min=1e-300).log(), 1)


#: ``vector`` is structured vector scaling, a factor and an offset for each class: without its ridge, vector scaling
#: diverged on development tasks. ``structured`` is structured matrix scaling (Berta et al., arXiv 2511.03685), which
#: probmetrics recommends; for two classes too, where its own choice, quadratic scaling, has no ridge.
CALIBRATORS: dict[str, Fit] = {
    "vector": _of_probmetrics("svs"),
    "structured": _of_probmetrics("sms"),
    "beta": _one_vs_rest(_beta),
    "isotonic": _one_vs_rest(_isotonic),
}
