"""One layer's distances against dense matrices."""

from __future__ import annotations

import pytest
import torch

from laplora.familiarity import mahalanobis
from laplora.familiarity.mahalanobis import SHRINKAGE, fit_layer

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


def test_the_nearest_class_counts_and_strangers_are_far() -> None:
    states, labels = rows_of(200)
    found, one = fit_layer(states, labels), fit_layer(states, torch.zeros_like(labels))
    inside, _ = rows_of(60, seed=5)
    between = states[labels == 0].mean(0) / 2 + states[labels == 1].mean(0) / 2
    outside = inside + 4 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
    assert found.squared(outside).min() > found.squared(inside).max()
    assert len(found.class_centers) == 3
    assert len(one.class_centers) == 1
    # A state between two classes is strange to classes, and ordinary among all rows.
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
