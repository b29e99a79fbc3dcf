"""Rolling figures are those of ``laplora.metrics.scores`` on the same rows; limits and references are what they say."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from server_process import ROOT
from serving import FakePredictor

from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import read_scores
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import SCORES
from laplora.metrics import scores as metrics
from laplora.metrics.drift import kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, highest_risk, lowest_coverage
from laplora.metrics.ranking import error_auroc
from service.feedback.labels import FeedbackStore
from service.feedback.references import reference_of, rows_above
from service.http.schemas.feedback import FiguresOut, SeriesOut

ARTIFACT = ROOT / "artifacts" / "sst2-smollm2"
LABELS = ("A", "B", "C")


class Rows:
    """Random predictions of three classes, with labels drawn from their probabilities."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(rows, 3, dtype=torch.float64, generator=generator)
        self.probs = logits.softmax(1)
        self.map_probs = (3 * logits).softmax(1)
        self.labels = torch.multinomial(self.probs, 1, generator=generator)[:, 0]
        self.accepted = self.probs.amax(1) > 0.6
        self.sets = self.probs > 0.2
        self.entropy = torch.special.entr(self.probs).sum(1)

    def predictions(self) -> list[Prediction]:
        base = FakePredictor(labels=LABELS)
        (one,) = base.predict([base.row(7)])
        return [
            replace(
                one,
                probs=self.probs[i].tolist(),
                map_probs=self.map_probs[i].tolist(),
                prediction_set=[label for k, label in enumerate(LABELS) if self.sets[i, k]],
                score=float(self.entropy[i]),
                epistemic=float(self.entropy[i]) / 2,
                decision="accept" if self.accepted[i] else "review",
                flags=["low_confidence"] if self.probs[i].max() < 0.5 else [],
            )
            for i in range(len(self.labels))
        ]

    def names(self) -> list[str]:
        return [LABELS[k] for k in self.labels.tolist()]


def predictor(**reference: Any) -> FakePredictor:
    found = FakePredictor(labels=LABELS)
    found.artifact.manifest.metrics = {"laplace": reference}
    found.artifact.manifest.predictives = {"laplace": thresholds()} if reference else {}
    return found


def shown(rows: Rows, predictor: FakePredictor, *, window: int = 1000) -> SeriesOut:
    store = FeedbackStore(keep_s=100.0, rows=5000, window=window)
    ids = store.remember(predictor, "laplace", "one", rows.predictions(), 0.05)  # type: ignore[arg-type]
    assert set(store.give("one", list(zip(ids, rows.names(), strict=True)))) == {"recorded"}
    (report,) = store.reports({predictor.artifact.digest})
    return report.shown


def watched(rows: Rows, predictor: FakePredictor) -> FiguresOut:
    figures = shown(rows, predictor).figures
    assert figures is not None
    return figures


def test_figures_are_those_of_the_metrics() -> None:
    rows = Rows(600)
    series = shown(rows, predictor())
    found = series.figures
    assert found is not None
    probs, labels = rows.probs, rows.labels
    wrong = probs.argmax(1) != labels
    assert series.labelled == 600
    assert found.accuracy.value == metrics.accuracy(probs, labels)
    assert found.nll.value == metrics.nll(probs, labels)
    assert found.ece.value == metrics.ece(probs, labels)
    assert found.brier.value == metrics.brier(probs, labels)
    assert found.auroc_error.value == error_auroc(rows.entropy, wrong)
    assert found.map_nll == metrics.nll(rows.map_probs, labels)
    assert found.map_gain.value == pytest.approx(found.map_nll - found.nll.value)
    assert found.coverage.value == pytest.approx(float(rows.sets.gather(1, labels[:, None]).double().mean()))
    assert found.accepted == int(rows.accepted.sum())
    assert found.accepted_risk.value == pytest.approx(float(wrong[rows.accepted].double().mean()))
    unsure = probs.amax(1) < 0.5
    assert series.flags["low_confidence"].rows == int(unsure.sum())
    assert series.flags["low_confidence"].error_rate == pytest.approx(float(wrong[unsure].double().mean()))


def test_only_the_last_rows_of_the_window_count() -> None:
    rows = Rows(600)
    series = shown(rows, predictor(), window=250)
    assert series.figures is not None
    assert (series.labelled, series.figures.nll.value) == (250, metrics.nll(rows.probs[-250:], rows.labels[-250:]))


def test_limits_are_the_noise_of_these_rows() -> None:
    rows = Rows(600)
    fake = predictor(rows=400, nll=0.8, ece=0.01)
    found = watched(rows, fake)
    losses = metrics.row_nll(rows.probs, rows.labels)
    # Of the difference of two means, the reference's rows taken to spread as these do.
    error = float(losses.std()) * math.sqrt(1 / 600 + 1 / 400)
    assert found.nll.limit == pytest.approx(0.8 + 3.0902 * error)
    noise = calibrated_ece(rows.probs.amax(1))
    assert (found.ece_expected, found.ece.limit) == (noise.mean, noise.limit)
    assert found.coverage.limit == lowest_coverage(0.9, 600, 150)
    assert found.accepted_risk.limit == highest_risk(0.05, found.accepted)
    assert found.accepted_risk.reference == pytest.approx(0.05)
    gain = metrics.row_nll(rows.map_probs, rows.labels) - losses
    assert found.map_gain.limit == pytest.approx(-3.0902 * float(gain.std()) / math.sqrt(600))
    # Overconfident MAP: the served predictive earns its keep.
    assert found.map_gain.value > 0 > found.map_gain.limit


def thresholds() -> Any:
    from laplora.decisions.thresholds import ModeThresholds, ReviewRule

    rule = ReviewRule(
        score="total_entropy",
        threshold=0.5,
        target_risk=0.05,
        guarantee="empirical",
        confidence=None,
        accepted=90,
        accepted_risk=0.04,
        auroc={"total_entropy": 0.8},
        reason="it was better",
    )
    return type("Record", (), {"thresholds": ModeThresholds(errors=20, flags={}, review=rule)})


def test_a_reference_known_to_be_miscalibrated_has_its_own_limit() -> None:
    """MAP's ECE was 0.144 when the artifact was made: an alert for that alone would never end."""
    rows = Rows(600)
    fake = predictor(rows=400, nll=0.8, ece=0.144)
    found = watched(rows, fake)
    noise = calibrated_ece(rows.probs.amax(1))
    # The reference's 400 rows have noise of their own.
    assert found.ece.limit == pytest.approx(0.144 + (noise.limit - noise.mean) * math.sqrt(1 + 600 / 400))


@pytest.mark.slow
def test_an_evaluations_own_noise_raises_no_alert() -> None:
    """Rows that go on as the 422 of the evaluation did: their ECE is the reference's, and no sign of a change."""
    evaluated = Rows(422, seed=5)
    nll, ece = metrics.nll(evaluated.probs, evaluated.labels), metrics.ece(evaluated.probs, evaluated.labels)
    fake = predictor(rows=422, nll=nll, ece=ece)
    for seed in range(20):
        again = Rows(422, seed=5)
        places = torch.randint(422, (1000,), generator=torch.Generator().manual_seed(seed))
        for name in ("probs", "map_probs", "labels", "accepted", "sets", "entropy"):
            setattr(again, name, getattr(evaluated, name)[places])
        found = watched(again, fake)
        assert found.nll.limit is not None
        assert found.ece.value <= found.ece.limit
        assert found.nll.value <= found.nll.limit


def test_a_calibrated_stream_is_within_its_limits() -> None:
    """Labels drawn from the probabilities: over 40 streams nothing passes a limit that one in 1,000 would."""
    passed = 0
    for seed in range(40):
        found = watched(Rows(300, seed), predictor())
        passed += found.ece.value > found.ece.limit
    assert passed == 0


def test_wrong_labels_pass_the_limits() -> None:
    rows = Rows(600)
    fake = predictor(rows=400, nll=metrics.nll(rows.probs, rows.labels), ece=0.02)
    rows.labels = (rows.labels + (torch.arange(600) % 3 == 0).long()) % 3
    found = watched(rows, fake)
    assert found.nll.limit is not None
    assert found.coverage.limit is not None
    assert found.accepted_risk.value is not None
    assert found.accepted_risk.limit is not None
    assert found.nll.value > found.nll.limit
    assert found.ece.value > found.ece.limit
    assert found.coverage.value < found.coverage.limit
    assert found.accepted_risk.value > found.accepted_risk.limit


def test_one_row_has_figures_and_no_noise_of_a_mean() -> None:
    found = watched(Rows(1), predictor(rows=400, nll=0.8))
    assert (found.nll.limit, found.map_gain.limit, found.auroc_error.value) == (None, None, None)


def test_accepted_answers_are_held_to_the_risks_they_were_accepted_for() -> None:
    fake, rows = predictor(), Rows(400)
    store = FeedbackStore(keep_s=100.0, rows=5000, window=1000)
    ids = store.remember(fake, "laplace", "one", rows.predictions()[:200], 0.02)  # type: ignore[arg-type]
    ids += store.remember(fake, "laplace", "one", rows.predictions()[200:], 0.1)  # type: ignore[arg-type]
    store.give("one", list(zip(ids, rows.names(), strict=True)))
    (report,) = store.reports({"sha256:fake"})
    first, second = int(rows.accepted[:200].sum()), int(rows.accepted[200:].sum())
    assert report.shown.figures is not None
    assert report.shown.figures.accepted_risk.reference == pytest.approx(
        (0.02 * first + 0.1 * second) / (first + second)
    )


def test_labels_of_reviewed_answers_alone_show_as_such() -> None:
    fake, rows = predictor(), Rows(400)
    store = FeedbackStore(keep_s=100.0, rows=5000, window=1000)
    ids = store.remember(fake, "laplace", "one", rows.predictions(), 0.05)  # type: ignore[arg-type]
    store.give("one", [(ids[i], rows.names()[i]) for i in range(400) if not rows.accepted[i]])
    (report,) = store.reports({"sha256:fake"})
    assert report.shown.labelled_accepted_share == 0.0
    assert report.shown.accepted_share == pytest.approx(float(rows.accepted.double().mean()))
    assert report.shown.figures is not None
    assert (report.shown.figures.accepted_risk.value, report.shown.figures.accepted_risk.limit) == (None, None)


def test_drift_from_the_first_answers() -> None:
    fake, rows = predictor(), Rows(400)
    store = FeedbackStore(keep_s=100.0, rows=5000, window=100)
    predictions = rows.predictions()

    def found(part: list[Prediction]) -> dict[tuple[str, str], Any]:
        store.remember(fake, "laplace", "one", part, 0.05)  # type: ignore[arg-type]
        (report,) = store.reports({"sha256:fake"})
        return {(one.signal, one.reference): one for one in report.shown.drift}

    assert found(predictions[:100]) == {}
    assert found(predictions[100:149]) == {}  # too few after the first hundred
    quiet = found(predictions[149:300])
    assert set(quiet) == {(signal, "activation") for signal in ("epistemic", "confidence", "score")}
    epistemic = [p.epistemic for p in predictions]
    first, later = (torch.tensor(part, dtype=torch.float64) for part in (epistemic[:100], epistemic[200:300]))
    expected = asdict(kolmogorov_smirnov(first, later))
    assert quiet["epistemic", "activation"].model_dump(exclude={"signal", "reference"}) == expected
    assert quiet["epistemic", "activation"].p_value > 0.001
    loud = found([replace(p, epistemic=(p.epistemic or 0.0) + 0.3) for p in predictions[300:]])
    assert loud["epistemic", "activation"].p_value < 1e-6
    assert loud["confidence", "activation"].p_value > 0.001


@pytest.fixture(scope="module")
def default() -> Any:
    """What ``reference_of`` needs of the default artifact's predictor, without its model."""
    artifact = read_artifact(ARTIFACT)
    manifest = artifact.manifest
    scores = read_scores(artifact.path / SCORES, manifest.servable, manifest.calibration.rows)
    return type("Default", (), {"artifact": artifact, "review_scores": scores})


def test_the_default_artifacts_references(default: Any) -> None:
    manifest = default.artifact.manifest
    laplace = reference_of(default, "laplace")
    measured = manifest.metrics["laplace"]
    assert (laplace.rows, laplace.nll, laplace.ece) == (422, measured["nll"], measured["ece"])
    assert (laplace.coverage, laplace.calibration_rows) == (0.9, 150)
    # Two classes: the entropy that reviews go by orders rows as the confidence does.
    assert laplace.scores_rank == ("score", "confidence")
    assert laplace.scores is not None
    # The 0.95 quantile of 150 rows leaves 8 above it.
    assert laplace.epistemic_above == (manifest.predictives["laplace"].thresholds.flags["high_epistemic"].value, 8)
    plain = reference_of(default, "map")
    assert (plain.scores_rank, plain.epistemic_above) == (("score", "confidence"), None)
    # fast hands unsure rows over, so its own calibration scores are not those of its answers.
    fast = reference_of(default, "fast")
    assert (fast.nll, fast.scores) == (manifest.metrics["fast"]["fidelity"]["served_nll"], None)
    average = reference_of(default, "laplace_order_average")
    assert (average.nll, average.scores, average.coverage) == (None, None, 0.9)


def test_the_quantile_leaves_as_many_rows_above_as_counted() -> None:
    """Against torch's interpolation, which the artifact's threshold comes from."""
    values = torch.rand(150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rows in (20, 21, 150):
        for level in (0.5, 0.9, 0.95):
            above = int((values[:rows] > values[:rows].quantile(level)).sum())
            assert rows_above(level, rows) == above


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.3", None, True])
def test_a_metric_that_is_no_number_is_no_reference(value: object) -> None:
    fake = predictor(rows=400, nll=value)
    assert reference_of(fake, "laplace").nll is None  # type: ignore[arg-type]
