"""What a fit refuses or leaves out where several labels of a row may be right."""

from __future__ import annotations

from collections.abc import Sequence

from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError
from laplora.fitting.progress import Progress
from laplora.fitting.settings import FitSettings
from laplora.prompts.examples import Example


def for_several_labels(
    classifier: Classifier, rows: Sequence[Example], settings: FitSettings, progress: Progress
) -> FitSettings:
    """Return the settings of a fit: where several labels may be right, without ``fast``.

    Args:
        rows: the training and calibration rows.

    Raises:
        DataError: rows with one label each.
        ConfigError: the guarantee ``upper_bound``, whose bound is on independent mistakes.
    """
    if classifier.readout.likelihood != "bernoulli":
        return settings
    if any(row.present is None for row in rows):
        raise DataError(
            "the model has a probability for each label (problem_type multi_label_classification), and the rows have "
            "one label each: give lists of labels, to laplora.fit or to python -m training fit --adapter"
        )
    if settings.calibration.guarantee == "upper_bound":
        raise ConfigError(
            "guarantee upper_bound takes one label a row, since labels of a row err together: use empirical"
        )
    if not settings.predictives.fast:
        return settings
    progress.say("fast is off: it does not learn the covariances of labels of which several may be right")
    return settings.model_copy(update={"predictives": settings.predictives.model_copy(update={"fast": 0})})
