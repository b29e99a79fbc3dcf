"""Rolling figures are those of ``laplora.metrics.scores`` on the same rows; limits and references are what they say."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from serving import FakePredictor

from benchmarks.harness.provenance import ARTIFACT
from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import read_scores
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import SCORES
from laplora.decisions.thresholds import ReviewRule
from laplora.metrics import scores as metrics
from laplora.metrics.drift import kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, highest_risk, lowest_coverage
from laplora.metrics.ranking import error_auroc
from service.feedback.gauges import CalibrationGauges
from service.feedback.labels import FeedbackStore
from service.feedback.records import Figures, SeriesReport
from service.feedback.references import reference_of

LABELS = ("A", "B", "C")


class Rows:
    """Random predictions of three classes, with labels drawn from their probabilities."""

    def __init__(self, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(rows, 3, dtype=torch.float64, generator=generator)
        self.probs = logits.softmax(1)
        self.map_probs = (3 * logits).softmax(1)
        self.labels = torch.multinomial(self.probs, 1, generator=generator)[:, 0]
        self.accepted = self.probs.amax(1) > 0.6
        self.sets = self.probs > 0.2
        self.entropy = torch.special.entr(self.probs).sum(1)

    @cached_property
    def predictions(self) -> list[Prediction]:
        base = FakePredictor(labels=LABELS)
        (one,) = base.predict([base.row(7)])
        return [
            replace(
                one,
                label_index=int(self.probs[i].argmax()),
                arrays=replace(one.arrays, probs=self.probs[i].numpy(), map_probs=self.map_probs[i].numpy()),
                prediction_set=[label for k, label in enumerate(LABELS) if self.sets[i, k]],
                score=float(self.entropy[i]),
                epistemic=float(self.entropy[i]) / 2,
                decision="accept" if self.accepted[i] else "review",
                flags=["low_confidence"] if self.probs[i].max() < 0.5 else [],
            )
            for i in range(len(self.labels))
        ]

    @property
    def names(self) -> list[str]:
        return [LABELS[k] for k in self.labels.tolist()]


def predictor(**reference: Any) -> FakePredictor:
    """Return a predictor whose artifact records these metrics."""
    record = SimpleNamespace(thresholds=SimpleNamespace(review=SimpleNamespace(score="total_entropy"), flags={}))
    found = FakePredictor(labels=LABELS)
    found.artifact.manifest.metrics = {"laplace": reference}
    found.artifact.manifest.predictives = {"laplace": record} if reference else {}
    return found


class Store:
    """A store of one predictor's answers."""

    def __init__(self, predictor: FakePredictor | None = None, *, window: int = 1000) -> None:
        self.predictor = predictor or FakePredictor(labels=LABELS)
        self.kept = FeedbackStore(keep_s=100.0, rows=5000, window=window)

    def remember(self, predictions: list[Prediction], target_risk: float = 0.05) -> list[str]:
        rule = ReviewRule.model_construct(target_risk=target_risk)
        decided = [replace(one, rule=rule) for one in predictions]
        return self.kept.remember(self.predictor, "laplace", "one", decided)

    def label(self, ids: list[str], names: list[str]) -> None:
        assert set(self.kept.give("one", list(zip(ids, names, strict=True)))) == {"recorded"}

    @property
    def shown(self) -> SeriesReport:
        (report,) = self.kept.reports([self.predictor])
        return report

    @property
    def figures(self) -> Figures:
        assert self.shown.figures is not None
        return self.shown.figures


def labelled(rows: Rows, predictor: FakePredictor | None = None, *, window: int = 1000) -> Store:
    """Return a store that knows every row's label."""
    store = Store(predictor, window=window)
    store.label(store.remember(rows.predictions), rows.names)
    return store


def test_figures_are_those_of_the_metrics() -> None:
    rows = Rows(600)
    store = labelled(rows)
    series, found = store.shown, store.figures
    probs, labels = rows.probs, rows.labels
    wrong = probs.argmax(1) != labels
    assert series.labelled == 600
    for name in ("accuracy", "nll", "ece", "brier"):
        assert getattr(found, name).value == getattr(metrics, name)(probs, labels)
    assert found.auroc_error.value == error_auroc(rows.entropy, wrong)
    assert found.map_nll == metrics.nll(rows.map_probs, labels)
    assert found.map_gain.value == pytest.approx(found.map_nll - (found.nll.value or 0.0))
    assert found.coverage.value == pytest.approx(float(rows.sets.gather(1, labels[:, None]).double().mean()))
    assert found.accepted == int(rows.accepted.sum())
    assert found.accepted_risk.value == pytest.approx(float(wrong[rows.accepted].double().mean()))
    unsure = probs.amax(1) < 0.5
    assert series.flags["low_confidence"].rows == int(unsure.sum())
    assert series.flags["low_confidence"].error_rate == pytest.approx(float(wrong[unsure].double().mean()))
    # Only the last rows of the window count.
    last = labelled(rows, window=250)
    assert last.shown.labelled == 250
    assert last.figures.nll.value == metrics.nll(probs[-250:], labels[-250:])


def test_limits_are_the_noise_of_these_rows() -> None:
    rows = Rows(600)
    store = labelled(rows, predictor(rows=400, nll=0.8, ece=0.01))
    found = store.figures
    assert (found.nll.reference, found.ece.reference, found.coverage.reference) == (0.8, 0.01, 0.9)
    gauges = {one.name: one.samples for one in CalibrationGauges(lambda: [store.shown], lambda: 0).collect()}
    assert [one.value for one in gauges["laplora_reference_nll"]] == [0.8]
    losses = metrics.row_nll(rows.probs, rows.labels)
    # Of the difference of two means, the reference's rows taken to spread as these do.
    error = float(losses.std()) * math.sqrt(1 / 600 + 1 / 400)
    assert found.nll.limit == pytest.approx(0.8 + 3.0902 * error)
    noise = calibrated_ece(rows.probs.amax(1))
    assert (found.ece_expected, found.ece.limit) == (noise.mean, noise.limit)
    assert found.coverage.limit == lowest_coverage(0.9, 600, 150)
    assert found.accepted_risk.limit == highest_risk(0.05, found.accepted)
    assert found.accepted_risk.reference == pytest.approx(0.05)
    # MAP's ECE was 0.144 when the artifact was made: an alert for that alone would never end. Its rows have noise too.
    wanted = 0.144 + (noise.limit - noise.mean) * math.sqrt(1 + 600 / 400)
    assert labelled(rows, predictor(rows=400, nll=0.8, ece=0.144)).figures.ece.limit == pytest.approx(wanted)
    gain = metrics.row_nll(rows.map_probs, rows.labels) - losses
    assert found.map_gain.limit == pytest.approx(-3.0902 * float(gain.std()) / math.sqrt(600))


@pytest.mark.parametrize("rows", [1, 2, 29, 30])
def test_few_equal_rows_raise_no_alarm(rows: int) -> None:
    """Their spread is 0, and would make a limit of the figure itself."""
    same = Rows(rows)
    same.probs, same.map_probs = same.probs[:1].expand(rows, 3), same.map_probs[:1].expand(rows, 3)
    same.labels = same.probs.argmin(1)  # MAP, being surer, is worse; all of its answers are wrong
    found = labelled(same, predictor(rows=400, nll=0.8)).figures
    assert (found.nll.limit is None, found.map_gain.limit is None) == (rows < 30, rows < 30)


def test_a_gain_is_not_judged_before_map_has_made_mistakes() -> None:
    """Where MAP made none it is surer and right: its lead says nothing of the mistakes to come."""
    rows = Rows(100)
    rows.labels = rows.map_probs.argmax(1)
    for mistakes, limited in ((0, False), (4, False), (5, True)):
        rows.labels[:mistakes] = rows.map_probs[:mistakes].argmin(1)
        gain = labelled(rows, predictor(rows=400, nll=0.8)).figures.map_gain
        assert gain.value is not None
        assert (gain.limit is not None) == limited
    assert gain.reference == 0


def test_accepted_answers_are_held_to_the_risks_they_were_accepted_for() -> None:
    rows, store = Rows(400), Store()
    ids = store.remember(rows.predictions[:200], 0.02) + store.remember(rows.predictions[200:], 0.1)
    store.label(ids, rows.names)
    first, second = int(rows.accepted[:200].sum()), int(rows.accepted[200:].sum())
    wanted = (0.02 * first + 0.1 * second) / (first + second)
    assert store.figures.accepted_risk.reference == pytest.approx(wanted)
    # Labels of reviewed answers alone show as such.
    store = Store()
    ids = store.remember(rows.predictions)
    reviewed = (~rows.accepted).nonzero().flatten().tolist()
    store.label([ids[i] for i in reviewed], [rows.names[i] for i in reviewed])
    assert store.shown.labelled_accepted_share == 0.0
    assert store.shown.accepted_share == pytest.approx(float(rows.accepted.double().mean()))
    assert (store.figures.accepted_risk.value, store.figures.accepted_risk.limit) == (None, None)


def test_a_costs_answer_is_right_or_wrong_by_its_own_label() -> None:
    """Of costs the label that answers need not be the most probable one; its stated risk is its own probability's."""
    rows, store = Rows(100), Store()
    least = [replace(p, label_index=int(np.argmin(p.arrays.probs)), expected_cost=1.0) for p in rows.predictions]
    ids = store.kept.remember(store.predictor, "laplace", "one", least)
    store.label(ids, rows.names)
    wrong = rows.probs.argmin(1) != rows.labels
    assert store.figures.accepted_risk.value == pytest.approx(float(wrong[rows.accepted].double().mean()))
    stated = 1 - rows.probs.amin(1)[rows.accepted]
    assert store.figures.accepted_risk.reference == pytest.approx(float(stated.mean()))


def test_drift_from_the_first_answers() -> None:
    predictions, store = Rows(400).predictions, Store(window=100)

    def drift_after(part: list[Prediction]) -> dict[tuple[str, str], Any]:
        store.remember(part)
        return {(one.signal, one.reference): one for one in store.shown.drift}

    assert drift_after(predictions[:100]) == {}
    assert drift_after(predictions[100:149]) == {}  # too few after the first hundred
    quiet = drift_after(predictions[149:300])
    assert set(quiet) == {(signal, "activation") for signal in ("epistemic", "confidence", "score")}
    epistemic = [p.epistemic for p in predictions]
    first, later = (torch.tensor(part, dtype=torch.float64) for part in (epistemic[:100], epistemic[200:300]))
    expected = asdict(kolmogorov_smirnov(first, later))
    assert asdict(quiet["epistemic", "activation"]) == {"signal": "epistemic", "reference": "activation", **expected}
    loud = drift_after([replace(p, epistemic=(p.epistemic or 0.0) + 0.3) for p in predictions[300:]])
    assert loud["epistemic", "activation"].p_value < 1e-6
    assert loud["confidence", "activation"].p_value > 0.001


def test_the_default_artifacts_references() -> None:
    artifact = read_artifact(ARTIFACT)
    manifest = artifact.manifest
    scores = read_scores(artifact.path / SCORES, manifest.servable, manifest.calibration.rows)
    default: Any = SimpleNamespace(artifact=artifact, review_scores=scores)
    laplace = reference_of(default, "laplace")
    measured = manifest.metrics["laplace"]
    assert (laplace.rows, laplace.nll, laplace.ece) == (600, measured["nll"], measured["ece"])
    assert (laplace.coverage, laplace.calibration_rows) == (0.9, 696)
    assert laplace.scores is not None
    assert laplace.scores_rank == ("score",)
    artifact = replace(artifact, manifest=manifest.model_copy(update={"labels": manifest.labels[:2]}))
    default = SimpleNamespace(artifact=artifact, review_scores=scores)
    # Reviews go by MAP's entropy, which with two classes orders rows as MAP's confidence does.
    assert reference_of(default, "map").scores_rank == ("score", "confidence")
    assert reference_of(default, "laplace").scores_rank == ("score",)
    average = reference_of(default, "no such")
    assert (average.nll, average.scores, average.coverage) == (None, None, 0.9)
