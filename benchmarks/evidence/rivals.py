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
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

Array = np.ndarray[Any, Any]


def _logistic(strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=300)


@dataclass(frozen=True)
class Rival:
    """One estimator of scikit-learn.

    Attributes:
        make: the estimator of a setting.
        prepare: what makes its features of rows, without their labels.
        settings: inverse strengths of a ridge, or numbers of neighbours, in order; two in a row that are worse than the
            best end the search.
        counts: whether a setting is the number of rows that answer.
    """

    make: Callable[[float], Any]
    prepare: Callable[[], Any]
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
        parts = [
            (of_row == fold, *self._prepared(rows[of_row != fold], rows[of_row == fold])) for fold in np.unique(of_row)
        ]
        for setting in self.settings if not self.counts else [s for s in self.settings if s <= fewest]:
            probs = np.zeros((len(y), classes))
            for asked, known, new in parts:
                probs[asked] = self._fitted(setting, known, y[~asked], new, classes)
            loss = -probs[np.arange(len(y)), y].mean()
            if loss < least:
                best, least, held_out, worse = setting, loss, probs, 0
            elif (worse := worse + 1) == 2:
                break
        every, new = self._prepared(rows, test)
        return torch.from_numpy(held_out), torch.from_numpy(self._fitted(best, every, y, new, classes))

    def _prepared(self, rows: Array, new_rows: Array) -> tuple[Array, Array]:
        prepare = self.prepare()
        return prepare.fit_transform(rows), prepare.transform(new_rows)

    def _fitted(self, setting: float, rows: Array, labels: Array, new_rows: Array, classes: int) -> Array:
        """Return (asked, classes) log probabilities of an estimator that was fitted to some rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of the widest, which folds do not choose
            estimator = self.make(setting).fit(rows, labels)
        probs = np.zeros((new_rows.shape[0], classes))
        probs[:, estimator.classes_] = estimator.predict_proba(new_rows)
        if self.counts or len(estimator.classes_) < classes:
            share = 1 / ((setting if self.counts else rows.shape[0]) + 1)
            probs = (1 - share) * probs + share / classes
        logs: Array = np.log(np.clip(probs, 1e-300, None))
        return logs


def _powers(low: int, high: int) -> tuple[float, ...]:
    return tuple(10.0**power for power in range(low, high + 1))


def _scaled_span() -> Any:
    """Return what scales each coordinate and turns rows into their own span, of at most as many dimensions as rows.

    A ridge gives no weight to what is orthogonal to all rows, so it answers the same, many times faster.
    """
    return make_pipeline(StandardScaler(), KernelPCA(remove_zero_eig=True))


#: Coordinates of states differ by orders of magnitude.
ON_STATES = Rival(_logistic, _scaled_span, _powers(-6, 3))
ON_EMBEDDINGS = Rival(_logistic, FunctionTransformer, _powers(-2, 4))
ON_WORDS = Rival(_logistic, lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), _powers(-2, 4))


def _nearest(count: float) -> Any:
    return KNeighborsClassifier(int(count), metric="cosine", weights="distance")


NEAREST = Rival(_nearest, FunctionTransformer, (1, 3, 5, 10, 20), counts=True)
NEAREST_STATE = Rival(_nearest, StandardScaler, NEAREST.settings, counts=True)
