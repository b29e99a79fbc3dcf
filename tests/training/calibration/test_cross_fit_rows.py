"""Cross-fitting of classification heads: several right labels, and many classes of which few directions are computed.

Runs of ``python -m training`` are tested in ``tests/training/test_cross_fit.py``.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch
from head_artifacts import save_base
from tiny_classifiers import adapted_classifier, classifier_base
from transformers import AutoTokenizer

import laplora
from laplora.errors import ConfigError
from laplora.fitting.fit import Fit, fit_rows
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Forgetful
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.predictive.cross_fitting import fold_rows
from laplora.predictive.lora_weights import in_place, lora_parameters
from laplora.prompts.examples import Example
from training.calibration.cross_fit import cross_fit_rows
from training.calibration.fold_adapters import FoldAdapter

FOLDS, ROWS, CLASSES = 2, 24, 3


def classifier_of(folder: Path, *, several: bool) -> laplora.Classifier:
    """Return a tiny classifier of three labels, of which one or several are right."""
    kind = "multi_label_classification" if several else "single_label_classification"
    model = adapted_classifier("roberta", dtype=torch.float32, problem_type=kind)
    base = save_base(folder / "base", classifier_base("roberta"), head=False)
    model.get_base_model().config._name_or_path = str(base)
    labels = ["news", "sport", "weather"]
    return laplora.Classifier(model, AutoTokenizer.from_pretrained(base), labels, "{text}", max_tokens=12)


def examples(*, several: bool) -> list[Example]:
    draw = random.Random(0)
    rows = []
    for i in range(ROWS):
        fields = {"text": " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9)))}
        present = tuple(sorted(draw.sample(range(CLASSES), draw.randint(0, CLASSES)))) if several else None
        rows.append(Example(str(i), fields, -1 if several else i % CLASSES, CLASSES, present))
    return rows


def adapters(classifier: laplora.Classifier) -> list[FoldAdapter]:
    """Return each fold's adapter, the classifier's with a little noise."""
    made = []
    for number in range(FOLDS):
        g = torch.Generator().manual_seed(number)
        weights = {
            name: weight.detach() + 0.02 * torch.randn(weight.shape, generator=g)
            for name, weight in lora_parameters(classifier.model).items()
        }
        made.append(FoldAdapter(weights, Forgetful()))
    return made


@pytest.mark.parametrize("several", [True, False], ids=["several labels", "few directions"])
def test_a_rows_answer_is_that_of_its_folds_adapter(tmp_path: Path, several: bool) -> None:
    """As a fit of that adapter by itself has it, on the rows that trained it and those of its fold."""
    classifier, rows = classifier_of(tmp_path, several=several), examples(several=several)
    settings = FitSettings.model_validate(
        {
            "calibration": {"folds": FOLDS},
            "predictives": {"conditioned": False},
            "many_classes": {"limit": 2, "directions": 1, "reference_rows": 4},
        }
    )
    folds, together = adapters(classifier), CLASSES if several else 1
    with pytest.raises(ConfigError, match="2 folds need an adapter each, 1 were given"):
        cross_fit_rows(classifier, rows, folds[:1], settings)

    def alone(adapter: FoldAdapter, fit: torch.Tensor, held: torch.Tensor) -> Fit:
        with in_place(lora_parameters(classifier.model), adapter.weights):
            parts = ([rows[i] for i in part.tolist()] for part in (fit, held))
            return fit_rows(classifier, *parts, settings)

    with warnings.catch_warnings():  # random weights: a prior at the edge of the range is no fault
        warnings.simplefilter("ignore", RuntimeWarning)
        found = cross_fit_rows(classifier, rows, folds, settings)
        apart = [alone(a, *parts) for a, parts in zip(folds, fold_rows(ROWS, FOLDS, settings.seed), strict=True)]
    assert found.posterior.rows == found.calibrated.calibration.rows == ROWS
    assert len(found.calibration) == together * ROWS
    whole = found.calibration.projected
    pairs = zip(apart, fold_rows(together * ROWS, FOLDS, settings.seed, together), strict=True)
    for number, (fold, (_, places)) in enumerate(pairs):
        assert whole.fold is not None
        assert set(whole.fold[places].tolist()) == {number}
        part = fold.calibration.projected
        assert torch.equal(whole.contrast_mean[places], part.contrast_mean)
        assert torch.equal(whole.kept[places][..., : part.kept.shape[-1]], part.kept)
        assert torch.equal(found.calibration.labels[places], fold.calibration.labels)
    assert isinstance(found.posterior, ManyClassPosterior) == (not several)
    assert (found.many_classes is None) == several
    if found.many_classes:
        assert 0 < found.many_classes.filled_in < 1
