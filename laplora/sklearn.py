"""A scikit-learn face: ``LaploraClassifier`` with ``fit``, ``predict``, ``predict_proba`` and ``score``.

    classifier = LaploraClassifier(peft_model, tokenizer, "Review: {text}\nSentiment:", calibration="split")
    classifier.fit(texts, labels).predict_proba(new_texts)
    cross_val_score(classifier, texts, labels, scoring="neg_log_loss")

If several labels of a row may be right, ``y`` is scikit-learn's indicator matrix of 0 and 1, (rows, labels), and so
is ``predict``; ``score`` is then the share of rows of which every label is right.

Needs scikit-learn: ``pip install 'laplora[sklearn]'``. ``fit`` fits the posterior of a model that is fine-tuned already
and trains nothing: in a cross-validation the model has seen all rows that it was fine-tuned on, in every fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from laplora.errors import ConfigError, DataError, install

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    raise ModuleNotFoundError(f"laplora.sklearn needs scikit-learn: {install('sklearn')}", name=error.name) from None

from laplora.classifier import MAX_TOKENS, Classifier
from laplora.fitting.calibrated import CalibratedPosterior
from laplora.fitting.entry import fit
from laplora.fitting.heads import HeadsPosterior
from laplora.prompts.templates import PromptTemplate
from laplora.settings import FitSettings

_LABEL, _GROUP = "label", "__group__"


class LaploraClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn states no types
    """Calibrated probabilities of a fine-tuned model, as a scikit-learn classifier.

    Attributes:
        classes_: (classes,) what ``y`` held, sorted, the columns of ``predict_proba``; of an indicator matrix the
            numbers of its columns.
        posterior_: what ``laplora.fit`` returned, with everything that has no place in scikit-learn.
    """

    classes_: np.ndarray[Any, Any]
    posterior_: CalibratedPosterior | HeadsPosterior

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: str | PromptTemplate,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        *,
        settings: FitSettings | None = None,
        calibration: Any = None,
        predictive: str | None = None,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = 8,
        progress: bool = False,
    ) -> None:
        """Hold the parameters; as scikit-learn wants it, nothing is checked before ``fit``.

        Args:
            model, tokenizer, template, labels, max_tokens: as of ``laplora.Classifier``. The model is shared with
                every clone and never changed but for its mode. Labels None: what ``y`` holds, as text, sorted; of an
                indicator matrix the names of a data frame's columns, or their numbers. With ``labels`` its columns are
                in their order.
            settings: as of ``laplora.fit``.
            calibration: rows that the model was not fine-tuned on, as ``(X, y)`` or ``(X, y, groups)``. A share between
                0 and 1, or ``"split"``, a fifth, says that it was fine-tuned on none of the rows that ``fit`` gets, and
                keeps that many of them out of the curvature. None is refused but for a model as it is.
            predictive: which one gives the probabilities; None: the recommended one.
            batch_size: rows of a prediction that run together.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.labels = labels
        self.settings = settings
        self.calibration = calibration
        self.predictive = predictive
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.progress = progress

    def __sklearn_clone__(self) -> LaploraClassifier:
        """Return an unfitted classifier with the same parameters; model and tokenizer are shared, not copied."""
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: Any, y: Any, groups: Any = None) -> LaploraClassifier:
        """Fit the posterior of the model's adapter and calibrate it; the model is not trained.

        Args:
            X: texts, for a template with one field; or dicts of the template's fields, or a data frame with them.
            y: (rows,) labels: names, or numbers. Numbers count ``labels``, where those are given. If several may be
                right, (rows, labels) of 0 and 1: an array, a data frame or a sparse matrix.
            groups: (rows,) what rows share that belong together, as of ``laplora.fit``; None: equal prompts alone.

        Raises:
            DataError: ``X`` or ``y`` that cannot be used, a label without a row.
            ConfigError, LabelTokenError, ModelError, NonFiniteError, PriorError, FactorizationError: as of
                ``laplora.Classifier`` and ``laplora.fit``.
        """
        targets = _targets(y)
        check_classification_targets(targets)
        self._several = type_of_target(targets) == "multilabel-indicator"
        names, self.classes_ = self._columns(y, targets) if self._several else self._names(targets)
        classifier = Classifier(
            self.model,
            self.tokenizer,
            self.template,
            self.labels if self.labels is not None else list(names.values()),
            max_tokens=self.max_tokens,
        )
        self._column = {name: column for column, name in enumerate(names.values())}
        rows = _labelled(X, targets, names, classifier, groups)
        calibration = self.calibration
        if isinstance(calibration, tuple | list):
            others, theirs, *of = calibration
            calibration = _labelled(others, _targets(theirs), names, classifier, *of)
        self.posterior_ = fit(
            classifier,
            rows,
            calibration,
            settings=self.settings,
            label_field=_LABEL,
            groups=_GROUP,
            progress=self.progress,
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return (rows, classes) float64 the probabilities, columns in the order of ``classes_``; rows sum to 1.

        If several labels may be right, a column has the probability that its label is present.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
            DataError, ConfigError, NonFiniteError: as of ``CalibratedPosterior.predict``.
        """
        check_is_fitted(self, "posterior_")
        rows = _fields(X, self.posterior_.classifier)
        columns = np.argsort([self._column[label] for label in self.posterior_.classifier.labels])
        probs = self.posterior_.predict_proba(rows, self.predictive, batch_size=self.batch_size)
        return probs[:, columns]

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Return (rows,) the most probable class of each row, as ``y`` had it.

        If several labels may be right: (rows, labels) int64, 1 at those of probability above 0.5.
        """
        probs = self.predict_proba(X)
        if self._several:
            present: np.ndarray[Any, Any] = (probs > 0.5).astype(np.int64)
            return present
        chosen: np.ndarray[Any, Any] = self.classes_[probs.argmax(1)]
        return chosen

    def _columns(self, y: Any, targets: np.ndarray[Any, Any]) -> tuple[dict[Any, str], np.ndarray[Any, Any]]:
        """Return the label's name of each column of an indicator matrix, and the columns' numbers."""
        count = targets.shape[1]
        if self.labels is not None:
            names = list(self.labels)
            if len(names) != count:
                raise DataError(f"y has {count} columns, and there are {len(names)} labels: give a column for each")
        else:
            names = [str(name) for name in getattr(y, "columns", range(count))]
        return dict(enumerate(names)), np.arange(count)

    def _names(self, targets: np.ndarray[Any, Any]) -> tuple[dict[Any, str], np.ndarray[Any, Any]]:
        """Return the label's name of each class, in the order of the classes, and the classes."""
        if isinstance(self.labels, str):
            raise ConfigError("labels must be a list of names, got one text: the template comes before the labels")
        present = np.unique(targets)
        if self.labels is None:
            return {value: str(value) for value in present.tolist()}, present
        labels = list(self.labels)
        if present.dtype.kind in "iu":
            odd = [value for value in present.tolist() if not 0 <= value < len(labels)]
            if odd:
                raise DataError(
                    f"y has the numbers {odd[:4]}, and there are {len(labels)} labels, from 0: use their names"
                )
            return dict(enumerate(labels)), np.arange(len(labels))
        if unknown := sorted({str(value) for value in present.tolist()} - set(labels)):
            shown = [name if len(name) <= 32 else f"a text of {len(name)} characters" for name in unknown[:4]]
            raise DataError(f"y has {shown}, which are not among the labels {labels[:8]}")
        classes = np.array(sorted(labels))
        return {name: name for name in classes.tolist()}, classes


def _targets(y: Any) -> np.ndarray[Any, Any]:
    """Return labels as an array; a sparse indicator matrix as a dense one."""
    return np.asarray(y.toarray() if hasattr(y, "toarray") else y)


def _fields(X: Any, classifier: Classifier) -> list[Mapping[str, Any]]:
    """Return each row's fields; DataError where one has none."""
    if hasattr(X, "to_dict") and hasattr(X, "columns"):  # a data frame
        return list(X.to_dict("records"))
    if isinstance(X, (str, bytes, Mapping)) or not isinstance(X, Iterable):
        raise DataError(f"X must be a list of texts or of dicts, or a data frame, got {type(X).__name__}")
    fields = classifier.template.fields
    rows: list[Mapping[str, Any]] = []
    for number, row in enumerate(X):
        if isinstance(row, str) and len(fields) == 1:
            row = {fields[0]: str(row)}
        if not isinstance(row, Mapping):
            wanted = "a text or a dict" if len(fields) == 1 else f"a dict of the fields {list(fields)}"
            raise DataError(f"row {number} of X must be {wanted}, got {type(row).__name__}")
        rows.append(row)
    return rows


def _labelled(
    X: Any, targets: np.ndarray[Any, Any], names: Mapping[Any, str], classifier: Classifier, groups: Any = None
) -> list[dict[str, Any]]:
    """Return rows with their labels' names and their groups, as ``laplora.fit`` takes them."""
    values = targets.tolist()
    rows: list[Mapping[str, Any]] = _fields(X, classifier)
    of_rows = [None] * len(rows) if groups is None else list(groups)
    if len(of_rows) != len(rows):
        raise DataError(
            f"X has {len(rows)} rows and groups {len(of_rows)}: give a group for each row, which may be None"
        )
    rows = [{**row, _GROUP: group} for row, group in zip(rows, of_rows, strict=True)]
    if len(rows) != len(values):
        raise DataError(f"X has {len(rows)} rows and y {len(values)}: give a label for each row")
    if targets.ndim == 2:
        if targets.shape[1] != len(names):
            raise DataError(f"y of the calibration rows has {targets.shape[1]} columns, expected {len(names)}")
        chosen: list[Any] = [[names[column] for column, held in enumerate(row) if held] for row in values]
        return _with_labels(rows, chosen)
    if unknown := [value for value in set(values) if value not in names]:
        raise DataError(f"{len(unknown)} labels of the calibration rows are not among the classes {list(names)[:8]}")
    return _with_labels(rows, [names[value] for value in values])


def _with_labels(rows: Sequence[Mapping[str, Any]], labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {**{name: row[name] for name in row if name != _LABEL}, _LABEL: label}
        for row, label in zip(rows, labels, strict=True)
    ]
