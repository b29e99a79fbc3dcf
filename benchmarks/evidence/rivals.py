"""The methods of scikit-learn that a user would try first. Each chooses its setting by five folds over the rows.

A rival's threshold is set on the answers of those folds at the chosen setting. If it gives 0 to a class that it does
not have, a share of ``1 / (rows that answer + 1)`` is spread over all classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = np.ndarray[Any, Any]


def _logistic(strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=300)


@dataclass(frozen=True)
class Rival:
    """One estimator of scikit-learn.

    Attributes:
        make: the estimator of a setting.
        settings: inverse strengths of a ridge, or numbers of neighbours, in order; two in a row that are worse than the
            best end the search.
        counts: whether a setting is the number of rows that answer.
    """

    make: Callable[[float], Any]
    settings: Sequence[float]
    counts: bool = False

    def answers(
        self, rows: Array, labels: torch.Tensor, test: Array, folds: torch.Tensor, classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log probabilities of the labelled rows by the folds without them, and of the test rows; float64.

        Args:
            rows: features (rows, width), or texts (rows,); test likewise.
            folds: (rows,) int64.
        """
        y, of_row = labels.numpy(), folds.numpy()
        best, least, held_out, worse = self.settings[0], np.inf, np.zeros((len(y), classes)), 0
        fewest = len(y) - int(np.bincount(of_row).max())
        for setting in self.settings if not self.counts else [s for s in self.settings if s <= fewest]:
            probs = np.zeros((len(y), classes))
            for fold in np.unique(of_row):
                kept = of_row != fold
                probs[~kept] = self._fitted(setting, rows[kept], y[kept], rows[~kept], classes)
            loss = -probs[np.arange(len(y)), y].mean()
            if loss < least:
                best, least, held_out, worse = setting, loss, probs, 0
            elif (worse := worse + 1) == 2:
                break
        return torch.from_numpy(held_out), torch.from_numpy(self._fitted(best, rows, y, test, classes))

    def _fitted(self, setting: float, rows: Array, labels: Array, new_rows: Array, classes: int) -> Array:
        """Return (asked, classes) log probabilities of an estimator that was fitted to some rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of the widest, which folds do not choose
            estimator = self.make(setting).fit(rows, labels)
        probs = np.zeros((len(new_rows), classes))
        probs[:, estimator.classes_] = estimator.predict_proba(new_rows)
        if self.counts or len(estimator.classes_) < classes:
            share = 1 / ((setting if self.counts else len(rows)) + 1)
            probs = (1 - share) * probs + share / classes
        return np.log(np.clip(probs, 1e-300, None))


def _powers(low: int, high: int) -> tuple[float, ...]:
    return tuple(10.0**power for power in range(low, high + 1))


#: Coordinates of states differ by orders of magnitude.
ON_STATES = Rival(lambda strength: make_pipeline(StandardScaler(), _logistic(strength)), _powers(-6, 3))
ON_EMBEDDINGS = Rival(_logistic, _powers(-2, 4))
NEAREST = Rival(
    lambda count: KNeighborsClassifier(int(count), metric="cosine", weights="distance"), (1, 3, 5, 10, 20), counts=True
)
ON_WORDS = Rival(
    lambda strength: make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), _logistic(strength)),
    _powers(-2, 4),
)
NEAREST_STATE = Rival(
    lambda count: make_pipeline(
        StandardScaler(), KNeighborsClassifier(int(count), metric="cosine", weights="distance")
    ),
    NEAREST.settings,
    counts=True,
)
