"""Cross-fitting of a classifier with many classes, of which few directions are computed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from head_artifacts import save_base
from tiny_classifiers import adapted_classifier, classifier_base
from transformers import AutoTokenizer

import laplora
from laplora.errors import ConfigError
from laplora.features.store import Forgetful
from laplora.fitting.fit import Fit, fit_rows
from laplora.head import fit as fit_head
from laplora.linearised import class_log_probs
from laplora.metrics.scores import row_nll
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.predictive.cross_fitting import fold_rows
from laplora.predictive.lora_weights import in_place, lora_parameters
from laplora.prompts.examples import Example
from laplora.settings import FitSettings
from training.calibration.cross_fit import cross_fit_rows
from training.calibration.fold_adapters import FoldAdapter

FOLDS, ROWS, LABELS = 2, 24, ["news", "sport", "weather"]
SETTINGS = FitSettings.model_validate(
    {"calibration": {"folds": FOLDS}, "many_classes": {"limit": 2, "directions": 1, "reference_rows": 4}}
)


def noisy_adapter(classifier: laplora.Classifier, number: int) -> FoldAdapter:
    """Return the adapter of a fold: the classifier's with a little noise."""
    g = torch.Generator().manual_seed(number)
    parameters = lora_parameters(classifier.model).items()
    noisy = {name: weight.detach() + 0.02 * torch.randn(weight.shape, generator=g) for name, weight in parameters}
    return FoldAdapter(noisy, Forgetful())


def test_a_rows_answer_is_that_of_its_folds_adapter(tmp_path: Path) -> None:
    """As a fit of that adapter by itself has it, on the rows that trained it and those of its fold."""
    model, draw = adapted_classifier("roberta", dtype=torch.float32), random.Random(0)
    base = save_base(tmp_path / "base", classifier_base("roberta"), head=False)
    model.get_base_model().config._name_or_path = str(base)
    classifier = laplora.Classifier(model, AutoTokenizer.from_pretrained(base), "{text}", LABELS, max_tokens=12)
    texts = [" ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9))) for _ in range(ROWS)]
    rows = [Example(str(i), {"text": text}, i % len(LABELS), len(LABELS)) for i, text in enumerate(texts)]
    folds, parts = [noisy_adapter(classifier, number) for number in range(FOLDS)], fold_rows(ROWS, FOLDS, SETTINGS.seed)
    with pytest.raises(ConfigError, match="2 folds need an adapter each, 1 were given"):
        cross_fit_rows(classifier, rows, folds[:1], SETTINGS)

    def alone(adapter: FoldAdapter, fit: torch.Tensor, held: torch.Tensor) -> Fit:
        with in_place(lora_parameters(classifier.model), adapter.weights):
            return fit_rows(classifier, *([rows[i] for i in part.tolist()] for part in (fit, held)), SETTINGS)

    found = cross_fit_rows(classifier, rows, folds, SETTINGS)
    whole, scores, fits = found.calibration.projected, [], list[Fit]()
    for number, (adapter, (fit, held)) in enumerate(zip(folds, parts, strict=True)):
        of_fold = alone(adapter, fit, held)
        part = of_fold.calibration
        scores.append(of_fold.familiar.familiarity.reference)
        assert whole.fold is not None
        assert set(whole.fold[held].tolist()) == {number}
        assert torch.equal(whole.contrast_mean[held], part.projected.contrast_mean)
        assert torch.equal(whole.kept[held][..., : part.projected.kept.shape[-1]], part.projected.kept)
        assert torch.equal(found.calibration.labels[held], part.labels)
        assert torch.equal(found.calibration.last[held], part.last)
        fits.append(of_fold)
    assert found.familiar.record.rows == ROWS
    assert torch.equal(found.familiar.familiarity.reference, torch.cat(scores).sort().values)
    assert found.posterior.rows == found.calibrated.calibration.rows == len(found.calibration) == ROWS
    assert isinstance(found.posterior, ManyClassPosterior)
    assert found.many_classes is not None
    assert 0 < found.many_classes.filled_in < 1
    # A fold is corrected by what the labels of the other one teach through the states of its adapter.
    losses = []
    for other, one in (fits, reversed(fits)):
        taught, split = other.calibration, one.calibration
        assert taught.last is not None
        offset = class_log_probs(taught.logits, taught.class_mask)
        head = fit_head(taught.last, taught.labels, offset=offset, temper=True, class_mask=taught.class_mask).head
        logs = head.log_probs(split.last, class_log_probs(split.logits, split.class_mask), split.class_mask)
        losses.append(row_nll(logs.exp(), split.labels))
    assert found.calibrated.predictives["conditioned"].nll == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    # The other fold's adapter knows the labels that judge it: it is there, in no pool, and no candidate.
    assert list(found.experts) == ["adapter", "temperature", "conditioned", "laplace"]
    assert not any(one.held_out.isnan().any() for one in found.experts.values())
    assert found.calibrated.recommended.table.keys() == {"map", "temperature", "laplace"}
