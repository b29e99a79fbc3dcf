"""Out-of-distribution scores of layers and logits, and familiarity, their share among the calibration rows."""

from __future__ import annotations

import math

import pytest
import torch
from shown_states import familiarity_of, states_of

from laplora.errors import NonFiniteError
from laplora.familiarity import mahalanobis
from laplora.familiarity.mahalanobis import SHRINKAGE, fit_layer
from laplora.familiarity.ood_score import OodScore, divergence, fit_ood_score
from laplora.familiarity.percentile import false_alarms, is_unfamiliar, percentile, watched_layers
from laplora.jacobians.states import States
from laplora.linearised import contrast_mean

LABELS = torch.arange(80) % 3


def rows(count: int, seed: int) -> States:
    """Return random rows of two layers and three classes."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, 12, generator=draw)
    return states_of(hidden, contrast_mean(3 * torch.randn(count, 3, generator=draw).double()))


def test_divergence_is_that_of_uniform_probabilities_from_the_labels() -> None:
    logits = 4 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.full_like(logits, 1 / 5)
    expected = torch.nn.functional.kl_div(logits.log_softmax(1), uniform, reduction="none").sum(1)
    found = divergence(states_of(torch.zeros(30, 1, 2), contrast_mean(logits)))
    torch.testing.assert_close(found, expected)
    shifted = divergence(states_of(torch.zeros(30, 1, 2), contrast_mean(logits + 100)))
    torch.testing.assert_close(shifted, expected)
    assert float(divergence(states_of(torch.zeros(1, 1, 2), torch.zeros(1, 4)))) == pytest.approx(0, abs=1e-12)


def test_it_is_the_mean_of_the_layers_less_the_weighted_divergence() -> None:
    train, new = rows(80, 0), rows(20, 2)
    found = fit_ood_score(train, LABELS)
    each = [distance.squared(new.hidden[:, place]).log() for place, distance in enumerate(found.distances)]
    torch.testing.assert_close(found.of(new), (each[0] + each[1]) / 2 - found.weight * divergence(new))
    # Over the training rows the divergence varies half as much as the distance.
    far = OodScore(found.layers, found.distances).of(train)
    assert float(far.std()) / 2 == pytest.approx(found.weight * float(divergence(train).std()))


def test_where_several_labels_may_be_right_or_logits_are_all_the_same_there_is_no_divergence() -> None:
    several = (torch.rand(80, 4, generator=torch.Generator().manual_seed(3)) > 0.5).long()
    found = fit_ood_score(rows(80, 0), several)
    assert found.weight == 0
    assert all(len(distance.class_centers) == 1 for distance in found.distances)
    assert fit_ood_score(states_of(rows(80, 0).hidden, torch.ones(80, 2)), LABELS).weight == 0
    assert fit_ood_score(rows(80, 0), LABELS, by_logits=False).weight == 0


def test_layers_are_found_among_those_that_were_watched() -> None:
    train = rows(80, 0)
    last = fit_ood_score(train.after((1,)), LABELS)
    assert last.layers == (1,)
    assert torch.equal(last.of(rows(20, 2)), last.of(rows(20, 2).after((1,))))


@pytest.mark.parametrize("part", ["hidden", "contrast_mean"])
def test_what_is_not_finite_is_refused(part: str) -> None:
    train = rows(80, 0)
    getattr(train, part)[3] = torch.nan
    with pytest.raises(NonFiniteError):
        fit_ood_score(train, LABELS)


def states(count: int, seed: int, shift: float = 0.0) -> States:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, 12, generator=draw) * torch.tensor([1.0, 9.0])[:, None] + shift
    return states_of(hidden, 3 * torch.randn(count, 2, generator=draw))


def test_it_is_the_conformal_p_value() -> None:
    reference = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    found = percentile(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), reference)
    # At least as far are all 4, all 4, 3, 1, 1, none; the row itself counts too.
    assert found.tolist() == [1.0, 1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_flag_is_raised_on_at_most_the_stated_share_of_rows_like_the_calibration_rows(rate: float) -> None:
    """Over many draws of 99 calibration rows: their share is known, since a p-value takes each of its values alike."""
    train = states(60, 0)
    labels = torch.arange(60) % 2
    raised = []
    for seed in range(200):
        drawn = states(119, 100 + seed)
        found = familiarity_of(train, labels, drawn.take(torch.arange(99)))
        raised.append(
            is_unfamiliar(found.of(drawn.take(torch.arange(99, 119))), false_alarms(rate, 99)).double().mean()
        )
    share = float(torch.stack(raised).mean())
    # 4,000 rows, of which those of a draw are flagged together or not: three standard errors.
    assert share == pytest.approx(math.floor(rate * 100) / 100, abs=3 * math.sqrt(rate / 1500))


def test_far_rows_are_less_familiar_than_every_calibration_row() -> None:
    found = familiarity_of(states(60, 0), torch.zeros(60, dtype=torch.int64), states(49, 1))
    assert found.of(states(10, 2, 30.0)).tolist() == [1 / 50] * 10
    assert float(found.of(states(500, 3)).mean()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("wanted", "rows", "share"), [(0.02, 150, 0.02), (0.02, 20, 1 / 21), (0.02, 49, 0.02)])
def test_few_rows_tell_no_small_share(wanted: float, rows: int, share: float) -> None:
    assert false_alarms(wanted, rows) == share
    farther_than_all = torch.tensor([1 / (rows + 1)], dtype=torch.float64)
    assert is_unfamiliar(farther_than_all, false_alarms(wanted, rows)).tolist() == [True]
    shares = torch.arange(1, 100, dtype=torch.float64) / 100
    assert all(int(is_unfamiliar(shares, share / 100).sum()) == share for share in range(1, 99))  # 2 of 100 are 0.02


def test_which_layers_are_watched() -> None:
    depths = {1: (0,), 2: (0, 1), 3: (0, 1, 2), 12: (3, 4, 5, 7, 8, 9), 30: (7, 10, 13, 16, 19, 22)}
    assert {count: watched_layers(count, ends_alike=True) for count in depths} == depths
    assert watched_layers(30, ends_alike=False) == (29,)


HIDDEN = 24


def rows_of(count: int, classes: int = 3, seed: int = 0, size: int = HIDDEN) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of some classes with few strong directions among many weak ones, and the classes."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.Generator().manual_seed(9)
    labels = torch.arange(count) % classes
    centers = 3 * torch.randn(classes, size, generator=mix)
    strong = torch.randn(5, size, generator=mix)
    states = centers[labels] + torch.randn(count, 5, generator=draw) @ strong + 5
    return (states + 0.3 * torch.randn(count, size, generator=draw)), labels


def dense(states: torch.Tensor, labels: torch.Tensor, kept: int, new: torch.Tensor) -> torch.Tensor:
    """Return the distances of new states by whole covariance matrices, inverted."""
    states, new = states.double(), new.double()
    rows, size = states.shape
    names = labels.unique()
    means = torch.stack([states[labels == name].mean(0) for name in names])
    center = states.mean(0)
    total = (states - center).T @ (states - center) / rows
    basis = torch.linalg.eigh(total).eigenvectors.flip(1)[:, :kept]
    inside = basis @ basis.T
    residuals = states - means[[names.tolist().index(int(label)) for label in labels]]
    within = residuals.T @ residuals / (rows - len(names))
    outside = float(total.trace() - (inside @ total).trace())
    mean = (float((inside @ within).trace()) + outside) / size
    identity = torch.eye(size, dtype=torch.float64)
    covariance = (1 - SHRINKAGE) * inside @ within @ inside + SHRINKAGE * mean * inside
    rest = (1 - SHRINKAGE) * outside / max(size - kept, 1) + SHRINKAGE * mean
    precision = torch.linalg.inv(covariance + rest * (identity - inside))
    # A centre is compared inside the directions alone; outside of them, the mean of all rows is.
    seen = center + (means - center) @ inside
    gaps = new[:, None] - seen
    return torch.einsum("nci,ij,ncj->nc", gaps, precision, gaps).amin(1)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep directions as they are computed, and fewer of them than there are."""
    monkeypatch.setattr(mahalanobis, "KEPT", torch.float64)
    monkeypatch.setattr(mahalanobis, "MOST_DIRECTIONS", 7)


def test_directions_that_are_found_by_iteration_hold_as_much_variance() -> None:
    states = torch.randn(700, 400, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.3, 400)
    kept = fit_layer(states, torch.zeros(700, dtype=torch.int64)).directions.double()
    centred = (states - states.mean(0)).double()
    most = torch.linalg.eigvalsh(centred.T @ centred)[-64:].sum()
    assert kept.shape == (400, 64)
    assert float((centred @ kept).square().sum() / most) == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("rows", [12, 200])
@pytest.mark.parametrize("classes", [1, 3])
def test_distances_are_those_of_dense_matrices(rows: int, classes: int) -> None:
    """With fewer rows than dimensions and with more. All but the directions is kept in float32."""
    states, labels = rows_of(rows, classes)
    new, _ = rows_of(40, seed=4)
    found = fit_layer(states, labels)
    assert found.directions.shape == (HIDDEN, 7)
    torch.testing.assert_close(found.squared(new), dense(states, labels, 7, new), rtol=1e-5, atol=1e-5)


def test_rounded_directions_change_little() -> None:
    """What is stored of them is float16: two digits of a distance, even where no direction is left out."""
    states, labels = rows_of(200)
    new, _ = rows_of(40, seed=4)
    found = fit_layer(states, labels)
    assert found.directions.dtype == torch.float16
    kept = found.directions.shape[1]
    torch.testing.assert_close(found.squared(new), dense(states, labels, kept, new), rtol=1e-2, atol=0)


def test_the_nearest_class_counts_and_other_rows_are_far() -> None:
    states, labels = rows_of(200)
    found, one = fit_layer(states, labels), fit_layer(states, torch.zeros_like(labels))
    inside, _ = rows_of(60, seed=5)
    between = states[labels == 0].mean(0) / 2 + states[labels == 1].mean(0) / 2
    outside = inside + 4 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
    assert found.squared(outside).min() > found.squared(inside).max()
    assert len(found.class_centers) == 3
    assert len(one.class_centers) == 1
    # A state between two classes is far from classes, and ordinary among all rows.
    share = [float((d.squared(inside) < d.squared(between[None])).double().mean()) for d in (found, one)]
    assert share[0] == 1
    assert share[1] < 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_may_have_any_number_format(dtype: torch.dtype) -> None:
    states, labels = rows_of(100)
    found = fit_layer(states, labels)
    new, _ = rows_of(10, seed=7)
    torch.testing.assert_close(found.squared(new.to(dtype)), found.squared(new), rtol=0.1, atol=0)
    assert found.squared(new.to(dtype)).dtype == torch.float64


def test_few_rows_do_and_rows_that_are_all_the_same() -> None:
    for rows in (2, 3, 5):
        found = fit_layer(*rows_of(rows))
        assert bool(found.squared(rows_of(9, seed=2)[0]).isfinite().all())
        assert float(found.rest) > 0
    states = torch.ones(6, HIDDEN)
    found = fit_layer(states, torch.zeros(6, dtype=torch.int64))
    assert float(found.squared(states).max()) == 0
    assert float(found.squared(states + 1).min()) > 1e6
