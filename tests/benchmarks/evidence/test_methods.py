"""The methods that are compared: averages of members, maps of logits, and scores that choose what is reviewed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import generator

from benchmarks.evidence import answers, plan, versions
from benchmarks.evidence.methods import Answer, Method, averages, recalibration, review
from benchmarks.evidence.methods.recalibration import Fit
from benchmarks.evidence.methods.review import Score, Signs
from benchmarks.evidence.outputs import Outputs, Rows
from benchmarks.evidence.plan import Training, Unit
from benchmarks.evidence.results import Results
from benchmarks.evidence.reviewed import prr, reviewed
from benchmarks.evidence.scores import METRICS, RESAMPLES
from benchmarks.evidence.swag import SNAPSHOTS, Moments, snapshot_steps, swag_sample
from benchmarks.evidence.tfb import ALLOWED_RISE, SAMPLES, isotropic_sample, largest_sigma
from benchmarks.evidence.versions import has_members, members_path
from laplora.files import write_tensors
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import nll

A, B = "layer.q_proj.lora_A", "layer.q_proj.lora_B"


def test_isotropic_noise_is_alike_in_every_direction_of_the_update() -> None:
    draw, sigma = generator(0), 0.3
    trained = {
        A: torch.randn(2, 4, generator=draw),
        B: torch.randn(6, 2, generator=draw) @ torch.diag(torch.tensor([3.0, 0.2])),
    }
    update, columns = trained[B] @ trained[A], torch.linalg.svd(trained[B], full_matrices=False)[0]
    samples = [isotropic_sample(trained, sigma, draw) for _ in range(4000)]
    noise = torch.stack([columns.T @ (s[B] @ s[A] - update) for s in samples]).flatten(1)
    covariance = noise.T @ noise / len(noise)
    # The standard error of a variance of 0.09 from 4000 draws is 0.002.
    assert torch.allclose(covariance, sigma**2 * torch.eye(8), atol=0.01)
    assert all(torch.equal(s[B], trained[B]) for s in samples[:3])


def linear(scale: float) -> tuple[dict[str, torch.Tensor], Callable[[Mapping[str, torch.Tensor]], torch.Tensor]]:
    """Weights of one block, and the logits of 60 rows that are linear in its update."""
    draw = generator(7)
    trained = {A: torch.randn(2, 5, generator=draw), B: torch.randn(3, 2, generator=draw)}
    rows = torch.randn(60, 5, generator=draw)
    return trained, lambda weights: scale * rows @ (weights[B] @ weights[A]).T


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_the_noise_is_the_largest_that_the_tolerance_bears(scale: float) -> None:
    trained, logits = linear(scale)
    sigma = largest_sigma(logits, trained, seed=3)
    answers = logits(trained).argmax(1, keepdim=True)

    def rise(sigma: float) -> float:
        draw = torch.Generator().manual_seed(3)
        samples = [logits(isotropic_sample(trained, sigma, draw)).double().softmax(1) for _ in range(SAMPLES)]
        before, after = (
            float(-probs.gather(1, answers).log().mean())
            for probs in (logits(trained).double().softmax(1), torch.stack(samples).mean(0))
        )
        return (after - before) / before

    assert rise(sigma) <= ALLOWED_RISE
    # 8 bisections of a range of 0.2: the next sigma that was tried and refused is 0.0008 above, or it is the largest.
    assert rise(sigma + 0.0016) > ALLOWED_RISE or sigma > 0.199
    assert ALLOWED_RISE == 1.5


def test_swag_has_half_its_variance_from_each_part_of_the_last_quarter() -> None:
    draw = generator(1)
    snapshots = torch.randn(30, 5, generator=draw) * torch.tensor([1.0, 2.0, 0.1, 1.0, 0.5])
    for steps in (104, 1000):
        assert len(at := snapshot_steps(steps)) == SNAPSHOTS
        assert steps * 3 // 4 - 1 <= min(at) < max(at) == steps - 1, "the last quarter"
    kept = Moments()
    for one in snapshots:
        kept.add({A: one})
    moments = kept.tensors()
    assert torch.allclose(moments[f"mean/{A}"], snapshots.mean(0), atol=1e-6)
    samples = torch.stack([swag_sample(moments, [A], draw)[A] for _ in range(6000)])
    # Deviations are from the mean of the snapshots so far, as in the paper, so the low-rank half is a little smaller.
    running = snapshots.cumsum(0) / torch.arange(1, 31)[:, None]
    low_rank = (snapshots - running).square().sum(0) / 29
    # 6000 draws: 2 % of standard error, and bfloat16 keeps three digits
    assert torch.allclose(samples.var(0), (snapshots.var(0, correction=0) + low_rank) / 2, rtol=0.1)


def unit_with(name: str, arrays: dict[str, torch.Tensor]) -> Outputs:
    draw = generator(2)

    def rows(count: int) -> Rows:
        logits = torch.randn(count, 3, generator=draw, dtype=torch.float64)
        labels = torch.randint(0, 3, (count,), generator=draw)
        return Rows(logits, torch.ones(count, 3, dtype=torch.bool), labels, torch.zeros(count, 2))

    outputs = Outputs(Unit(Training("trec", 150, 0), "long"), rows(4), rows(300), rows(6), torch.arange(300)[None])
    outputs.memo[name] = averages.Stored(arrays)
    return outputs


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_members_are_averaged_as_probabilities_at_a_temperature_of_their_mixture(scale: float) -> None:
    """Labels are drawn from the mixture itself; its logits are then stretched."""
    draw = generator(4)
    pool, test = (2 * torch.randn(10, rows, 3, generator=draw, dtype=torch.float64) for rows in (300, 6))
    outputs = unit_with("members.swag", {"pool": scale * pool, "test": scale * test})
    labels = torch.multinomial(pool.softmax(2).mean(0), 1, generator=draw)[:, 0]
    outputs.pool.labels.copy_(labels)
    plain, found = averages.members("swag")(outputs, 0).probs, averages.members_temperature("swag")(outputs, 0).probs
    assert torch.allclose(plain, (scale * test).softmax(2).mean(0))
    truth = test.softmax(2).mean(0)
    # 300 labels fix the temperature to about a tenth.
    assert float((found - truth).abs().max()) < 0.1
    assert float((found - plain).abs().max()) > float((found - truth).abs().max())


def test_retrained_ones_have_the_temperature_of_labels_that_they_were_not_trained_on() -> None:
    """Folds that of all rows held out, one adapter that of the rows of no other method."""
    draw = generator(5)
    pool, test = (torch.randn(rows, 3, generator=draw, dtype=torch.float64) for rows in (600, 6))
    labels = torch.multinomial(pool.softmax(1), 1, generator=draw)[:, 0]
    members = torch.randn(5, 6, 3, generator=draw, dtype=torch.float64)
    outputs = unit_with("folds", {"out_of_fold": 4 * pool, "labels": labels, "members": 4 * members})
    outputs.memo["retrained"] = averages.Stored({"test": 4 * test})
    assert torch.allclose(averages.retrained_folds(outputs, 0).probs, test.softmax(1), atol=0.05)
    assert torch.allclose(averages.cross_fitted(outputs, 0).probs, members.softmax(2).mean(0), atol=0.05)
    pool, test, places = 2 * pool[:300], 2 * test, torch.arange(100, 300)
    outputs = unit_with("retrained", {"further": 3 * pool[places], "test": 3 * test, "places": places})
    outputs.pool.labels.copy_(torch.multinomial(pool.softmax(1), 1, generator=draw)[:, 0])
    assert torch.allclose(averages.retrained(outputs, 0).probs, test.softmax(1), atol=0.05)


def test_answers_of_another_version_are_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A method's definition changed once while its answers stayed on disk, and two definitions shared a row."""
    monkeypatch.setattr(plan, "RUNS", tmp_path)
    monkeypatch.setattr(answers, "read_outputs", lambda _: unit_with("none", {}))
    unit, asked = Unit(Training("trec", 150, 0), "long"), []

    def method(version: int) -> Method:
        def answer(outputs: Outputs, draw: int) -> Answer:
            asked.append(version)
            return Answer(outputs.test.logits.softmax(1))

        return Method("map", "MAP", lambda _: 1.0, answer, draws=1, version=version)

    for version, expected in ((1, [1]), (1, [1]), (2, [1, 2]), (2, [1, 2])):
        monkeypatch.setattr(answers, "METHODS", {"map": method(version)})
        answers.answer(unit, lambda _: None)
        assert asked == expected
    assert [found.method.version for found in answers.read_answers(unit)] == [2]
    monkeypatch.setattr(answers, "METHODS", {"map": method(3)})
    assert not list(answers.read_answers(unit))
    monkeypatch.setattr(versions, "MEMBER_VERSIONS", {"tfb": 2})
    for written in ("1", "2"):
        write_tensors(members_path(tmp_path, "tfb"), {"test": torch.zeros(1)}, {"version": written})
        assert has_members(tmp_path, "tfb") is (written == "2"), "members too"


OF_MANY: dict[str, Fit] = {
    "temperature": recalibration.temperature,
    "ts_mix": recalibration.smoothed_temperature,
    "ets": recalibration.ensemble_temperature,
    "vector": recalibration.vector,
    "svs": recalibration.structured_vector,
    "sms": recalibration.structured_matrix,
}
OF_TWO: dict[str, Fit] = {"platt": recalibration.platt, "beta": recalibration.beta}

Truth = Callable[[torch.Tensor], torch.Tensor]


def sample(truth: Truth, classes: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(seed)
    logits = 3 * torch.randn(rows, classes, generator=draw, dtype=torch.float64)
    return logits, torch.multinomial(truth(logits), 1, generator=draw)[:, 0]


def excess(fit: Fit, truth: Truth, classes: int) -> float:
    """Return the NLL above the truth's, in nats, of a map fitted on many rows."""
    found = fit(*sample(truth, classes, 6000, 0))
    logits, labels = sample(truth, classes, 6000, 1)
    return nll(found(logits), labels) - nll(truth(logits), labels)


SHIFT = torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
CONFUSED = torch.tensor([[0.6, 0.5, 0.0], [0.5, 0.6, 0.0], [0.0, 0.0, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("truth", "classes", "names", "tolerance", "blind"),
    [
        # The maps have up to 20 numbers: 20 / (2 * 6000) nats are expected above the truth.
        (lambda z: (z / 2.5).softmax(1), 4, [*OF_MANY], 0.006, None),
        (lambda z: (z / 2 + SHIFT).softmax(1), 3, ["vector", "svs", "sms"], 0.006, "temperature"),
        (lambda z: (z.log_softmax(1) @ CONFUSED).softmax(1), 3, ["sms"], 0.01, "svs"),
        # Labels drawn at random. Its temperature is fitted before the weights, so a little is out of reach.
        (lambda z: 0.8 * z.softmax(1) + 0.2 / 4, 4, ["ets"], 0.02, "temperature"),
        # Beta calibration sees ln p and ln (1 - p), of which an affine map of their difference is one.
        (
            lambda z: torch.stack([0 * z[:, 0], 0.4 * (z[:, 1] - z[:, 0]) - 0.8], 1).softmax(1),
            2,
            [*OF_TWO],
            0.006,
            None,
        ),
    ],
    ids=["temperature", "intercepts", "two classes confused", "labels at random", "affine"],
)
def test_a_map_finds_the_truth_that_it_can_express_and_no_other(
    truth: Truth, classes: int, names: list[str], tolerance: float, blind: str | None
) -> None:
    for name in names:
        assert abs(excess((OF_MANY | OF_TWO)[name], truth, classes)) < tolerance, name
    assert blind is None or excess(OF_MANY[blind], truth, classes) > 0.03


@pytest.mark.parametrize("name", OF_MANY | OF_TWO)
def test_rows_without_a_mistake_leave_every_probability_above_zero(name: str) -> None:
    classes = 2 if name in OF_TWO else 3
    logits = torch.randn(20, classes, generator=generator(2), dtype=torch.float64)
    found = (OF_MANY | OF_TWO)[name](logits, logits.argmax(1))(5 * logits)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    assert bool((found >= 0).all())
    if name != "vector":  # Guo et al.'s has no penalty, and goes as far as its steps
        assert bool((found > 0).all())


def signs_of(rows: int, seed: int) -> tuple[Signs, torch.Tensor]:
    """Return rows whose mistakes lie far from the training rows, whatever their entropy."""
    draw = generator(seed)
    probs = torch.randn(rows, 3, generator=draw, dtype=torch.float64).softmax(1)
    strange = torch.randn(rows, generator=draw, dtype=torch.float64)
    layers = strange[:, None] + 0.1 * torch.randn(rows, 4, generator=draw, dtype=torch.float64)
    moved = torch.rand(rows, generator=draw, dtype=torch.float64)
    return Signs(probs, moved, layers, layers), strange > 0.8


@pytest.mark.parametrize("score", [review.huq, review.satrmd, review.learned])
def test_a_score_finds_mistakes_that_the_entropy_does_not(score: Score) -> None:
    (rows, wrong), (test, truth) = signs_of(150, 0), signs_of(400, 1)
    by_entropy, found = (error_auroc(values, truth) for values in (test.entropy, score(rows, wrong, test)))
    assert by_entropy is not None
    assert found is not None
    assert by_entropy < 0.6 < 0.9 < found
    if score is review.learned:  # without a mistake to learn from
        assert torch.equal(score(rows, torch.zeros_like(wrong), test), test.entropy)


def test_the_rejection_ratio_is_1_for_the_perfect_score_and_0_for_a_random_one() -> None:
    # The area of the perfect score's curve by sums: nothing is wrong until only mistakes are left out no more.
    coverages = (torch.arange(100_000).double() + 0.5) / 100_000
    perfect = float((1 - 0.8 / coverages).clamp_min(0).mean())
    assert prr([{"accuracy": 0.8, "aurc": perfect}]) == pytest.approx(1, abs=1e-3)
    assert prr([{"accuracy": 0.8, "aurc": 0.2}]) == pytest.approx(0)
    assert math.isnan(prr([{"accuracy": 1.0, "aurc": 0.0}]))


def test_a_gain_is_over_the_entropy_of_the_same_answers() -> None:
    place = {"task": "trec", "budget": 450, "style": "long", "accuracy": 0.8}
    aurc = {"temperature": 0.2, "conditioned": 0.1, "conditioned_huq": 0.08}
    records: list[dict[str, Any]] = [
        {**place, "method": name, "seed": seed, "draw": draw, "aurc": value + seed / 1e2 + draw / 1e3}
        for name, value in aurc.items()
        for seed in range(3)
        for draw in range(5)
    ]
    same = torch.randn(len(METRICS), RESAMPLES, generator=generator(4))
    resampled = {"conditioned": same - 0.1, "conditioned_huq": same - 0.12}
    (found,) = reviewed(Results(records, {("trec", 450, seed, "long"): resampled for seed in range(3)}))
    assert (found.method, found.seeds) == ("conditioned_huq", 3)
    assert found.difference.mean == pytest.approx(-0.02)
    assert found.difference.verdict == "win"  # rows, trainings and draws move both alike
    assert found.prr > found.entropy
