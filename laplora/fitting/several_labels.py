"""What a fit refuses where several labels of a row may be right."""

from __future__ import annotations

from collections.abc import Sequence

from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError
from laplora.fitting.settings import FitSettings
from laplora.prompts.examples import Example


def check_several_labels(classifier: Classifier, rows: Sequence[Example], settings: FitSettings) -> None:
    """Refuse what a fit cannot do where several labels may be right.

    Args:
        rows: the training and calibration rows.

    Raises:
        DataError: rows with one label each.
        ConfigError: the guarantee ``upper_bound``, whose bound is on independent mistakes.
    """
    if classifier.readout.likelihood != "bernoulli":
        return
    if any(row.present is None for row in rows):
        raise DataError(
            "the model has a probability for each label (problem_type multi_label_classification), and the rows have "
            "one label each: give lists of labels, to laplora.fit or to python -m training fit --adapter"
        )
    if settings.calibration.guarantee == "upper_bound":
        raise ConfigError(
            "guarantee upper_bound takes one label a row, since labels of a row err together: use empirical"
        )
