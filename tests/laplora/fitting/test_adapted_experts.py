"""The experts of a model with an adapter: honest where the adapter saw no label, and the posterior's own answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from head_artifacts import letters
from test_heads import LABELS, labelled
from tiny_classifiers import adapted_classifier, head_alone
from tiny_models import add_lora, tiny_base

import laplora
from laplora.errors import ConfigError
from laplora.experts.base import losses_of
from laplora.head import fold_numbers
from laplora.linearised import entropy
from laplora.metrics.scores import row_nll
from laplora.pool.choice import costs_of
from laplora.pool.fine_tuning import fine_tuning
from laplora.pool.pool import Pool

TRAIN, CALIBRATION, NEW = labelled(24), labelled(30, seed=1), labelled(8, seed=2)
SETTINGS: dict[str, Any] = {"laplace": {"rank": 2, "joint_rank": 6}, "calibration": {"unfamiliar_rate": 0}}


def classifier(model: Any, around: str = "[CLS] $A") -> laplora.Classifier:
    return laplora.Classifier(model, letters(around), "{text} z", LABELS, max_tokens=16)


def fitted(model: Any, rows: Any, calibration: Any, around: str = "[CLS] $A", **sections: Any) -> Any:
    settings = laplora.FitSettings.model_validate(SETTINGS | sections)
    return laplora.fit(classifier(model, around), rows, calibration, settings=settings, progress=False)


@pytest.fixture(scope="module")
def posterior() -> laplora.CalibratedPosterior:
    model = add_lora(tiny_base("llama"), ["q_proj", "v_proj"], dtype=None)
    found = fitted(model, [*TRAIN, {**CALIBRATION[0], "label": "no"}], CALIBRATION, experts={"names": ["frozen"]})
    assert isinstance(found, laplora.CalibratedPosterior)
    return found


def test_experts_are_honest_where_the_adapter_saw_no_label(posterior: laplora.CalibratedPosterior) -> None:
    """The heads that do not look at it are in all rows. A training row that is a calibration row's twin is dropped."""
    experts, trained = posterior.experts, 24
    assert posterior.data["rows"] == {"train": trained, "calibration": 30}
    assert posterior.data["twins_dropped"] == 1
    assert list(experts) == ["adapter", "temperature", "conditioned", "laplace", "frozen", "pooled"]
    for name, expert in experts.items():
        assert expert.held_out.shape == (trained + 30, 2)
        assert expert.held_out[trained:].isfinite().all()
        assert bool(expert.held_out[:trained].isnan().all()) == (name != "frozen")
    fit, records = posterior.fit, posterior.fit.calibrated.predictives
    labels = fit.calibration.labels
    for name, of in (("map", "adapter"), *((name, name) for name in experts if name != "adapter")):
        nll = row_nll(experts[of].held_out[trained:].exp(), labels).mean()
        assert float(nll) == pytest.approx(records[name].nll, rel=1e-6)
    frozen = experts["frozen"]
    assert not frozen.held_out.isnan().any()
    assert torch.equal(frozen.fitted.folds[trained:], fold_numbers(30, groups=fit.calibration.groups))


def test_honest_answers_decide_what_is_served_and_what_fine_tuning_gained(
    posterior: laplora.CalibratedPosterior,
) -> None:
    fit = posterior.fit
    experts, records, honest = fit.experts, fit.calibrated.predictives, fit.labelled.honest
    assert list(records) == ["map", *(name for name in experts if name != "adapter")]
    pool = experts["pooled"]
    assert isinstance(pool, Pool)
    assert list(pool.experts) == ["adapter", "conditioned", "frozen"]
    for name in ("conditioned", "frozen", "pooled"):  # as they are: no served fit ranks them
        scores = entropy(experts[name].held_out[honest].exp())
        torch.testing.assert_close(fit.scores[name].score, scores)
    chosen = fit.calibrated.recommended
    losses = {name: losses_of(of.held_out, fit.labelled)[honest] for name, of in experts.items()}
    assert {name: one["nll"] for name, one in chosen.table.items()} == pytest.approx(
        {name: record.nll for name, record in records.items()}
    )
    assert ("No LoRA posterior is in this answer" in chosen.reason) == (chosen.predictive != "laplace")
    served = losses["adapter" if chosen.predictive == "map" else chosen.predictive]
    found = fit.fine_tuning
    assert found is not None
    assert (found.served, found.without, found.rows) == (chosen.predictive, "frozen", 30)
    assert found.gained == pytest.approx(float((losses["frozen"] - served).mean()))
    heads = [name for name in ("conditioned", "frozen") if name in {"conditioned", *pool.weights, chosen.predictive}]
    assert list(fit.answering.heads) == heads
    assert set(posterior.predictives) == {*list(records)[:4], *heads, "pooled"}
    kept = fit.kept_rows()
    assert list(kept.experts) == heads
    assert kept.by_fold.keys() == pool.by_fold.keys()
    assert torch.equal(kept.log_probs["adapter"].isnan().any(1), ~honest)
    costs = costs_of(records, {"adapter": 0.5, "options": 0.5}, adapter=True)
    assert costs == {"map": 1, "temperature": 1, "conditioned": 1, "laplace": 3, "frozen": 2, "pooled": 3}
    model = posterior.classifier.model
    alone = fitted(model, TRAIN, CALIBRATION, predictives={"conditioned": False, "serve": "temperature"}).fit
    assert list(alone.experts) == ["adapter", "temperature", "laplace"]  # a pool of one is temperature scaling
    assert alone.fine_tuning is None
    assert alone.calibrated.recommended.reason.startswith("temperature: set by the configuration; by the labelled rows")


def test_fine_tuning_pays_by_more_than_a_standard_error() -> None:
    """Of the best answer without it; rows of a group are one unit."""
    rows = torch.arange(40).double()
    losses, without = rows % 7, {"frozen": rows % 7 + 0.2 + 0.1 * (-1) ** rows, "encoder": rows % 7 + 1}
    found = fine_tuning("pooled", losses, without, torch.arange(40))
    assert (found.without, found.gained) == ("frozen", pytest.approx(0.2))
    assert found.error == pytest.approx(0.1 / 39**0.5)
    assert str(found) == (
        "Fine-tuning gained 0.200 nats (standard error 0.016) over not fine-tuning: NLL of pooled against frozen"
    )
    found = fine_tuning("pooled", losses, {"frozen": losses + 0.2 - (rows < 20).double()}, torch.arange(40) // 20)
    assert (found.gained, found.error) == (pytest.approx(-0.3), pytest.approx(0.5))
    assert str(found).startswith("Do not fine-tune: pooled gains -0.300 nats (standard error 0.500) over frozen")
    assert str(replace(found, served="frozen")) == "Do not fine-tune: frozen, which needs no adapter, is what answers"


def test_experts_answer_inputs_as_the_posterior_does(posterior: laplora.CalibratedPosterior) -> None:
    outputs, experts = posterior.outputs(NEW), posterior.experts
    for name in ("temperature", "laplace", "conditioned"):
        expected = posterior.predict_proba(NEW, name)
        np.testing.assert_allclose(experts[name].log_probs(outputs).exp(), expected, atol=1e-5)
        predictive = experts[name].predictive(outputs)
        np.testing.assert_allclose(predictive.probs, expected, atol=1e-5)
        assert bool(predictive.std.any()) == (name != "temperature")
    by_map = posterior.predict_proba(NEW, "map")
    np.testing.assert_allclose(experts["adapter"].log_probs(outputs).exp(), by_map, atol=1e-5)
    with pytest.raises(ConfigError, match="this posterior learned later labels"):
        _ = posterior.condition(labelled(24, seed=6), force=True).experts


def test_of_several_labels_a_row_experts_give_each_labels_logit() -> None:
    model = adapted_classifier("llama", dtype=torch.float32, classes=2, problem_type="multi_label_classification")
    rows = [{**row, "label": [[], ["yes"], ["no"], ["no", "yes"]][i % 4]} for i, row in enumerate(labelled(54))]
    posterior = fitted(model, rows[:24], rows[24:], experts={"names": ["frozen"]})
    outputs, experts = posterior.outputs(NEW), posterior.experts
    assert list(experts) == ["adapter", "temperature", "conditioned", "laplace", "frozen", "pooled"]
    for name, expert in experts.items():
        assert expert.held_out.shape == (54, 2)
        assert expert.held_out[24:].isfinite().all()
        logits = expert.log_probs(outputs)
        torch.testing.assert_close(expert.predictive(outputs).probs, logits.sigmoid(), atol=1e-6, rtol=0)
        if name not in ("frozen", "pooled"):
            expected = posterior.predict_proba(NEW, "map" if name == "adapter" else name)
            np.testing.assert_allclose(logits.sigmoid(), expected, atol=1e-5)


def test_states_below_a_trained_head_may_know_its_labels() -> None:
    """Its base may have been trained whole."""
    model = head_alone("bert", classes=2, dtype=torch.float32)
    with pytest.raises(ConfigError, match="the base below a trained head may have been trained too"):
        fitted(model, TRAIN, CALIBRATION, "[CLS] $A [SEP]", experts={"names": ["frozen"]})
