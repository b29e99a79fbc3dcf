"""The simulation of labelling, on Gram matrices of random Jacobians."""

from __future__ import annotations

import pytest
import torch

from benchmarks.evidence.outputs import Kernel, Outputs, Rows
from benchmarks.evidence.plan import Training, Unit
from benchmarks.sweeps import labelling
from benchmarks.sweeps.labelling import SUBSET, Simulation
from laplora.linearised import contrast_hessian, contrast_logits

CLASSES, WEIGHTS, TRAIN, POOL, TEST, LABELLED = 3, 30, 12, 40, 8, 10


def outputs() -> tuple[Outputs, torch.Tensor]:
    """Return a linear model's arrays, and its Jacobians (all rows, contrasts, weights)."""
    draw = torch.Generator().manual_seed(3)
    jacobians = torch.randn(TRAIN + POOL + TEST, CLASSES - 1, WEIGHTS, generator=draw, dtype=torch.float64)
    truth = torch.randn(WEIGHTS, generator=draw, dtype=torch.float64)
    logits = contrast_logits(jacobians @ truth)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    given = 0.3 * logits
    flat = jacobians.flatten(0, 1)
    known = (TRAIN + POOL) * (CLASSES - 1)
    own = torch.einsum("ncw,ndw->ncd", jacobians, jacobians)
    kernel = Kernel((flat[:known] @ flat.T).float(), own[TRAIN + POOL :].float(), TRAIN, CLASSES - 1)

    def rows(first: int, last: int) -> Rows:
        mask = torch.ones(last - first, CLASSES, dtype=torch.bool)
        return Rows(given[first:last], mask, labels[first:last], jacobians[first:last].flatten(1))

    parts = (rows(0, TRAIN), rows(TRAIN, TRAIN + POOL), rows(TRAIN + POOL, TRAIN + POOL + TEST))
    draws = torch.randperm(POOL, generator=draw)[None, :LABELLED]
    made = Outputs(Unit(Training("sst2", 450, 0), "long"), *parts, draws, {f"kernel {SUBSET}": kernel})
    return made, jacobians


def test_the_kernel_is_that_of_the_posterior() -> None:
    """From Gram matrices as from Jacobians: ``J (H + precision)^-1 J^T`` between pool and test rows."""
    made, jacobians = outputs()
    one = Simulation(made, 0)
    curvature = contrast_hessian(made.train.logits, made.train.class_mask)
    train = jacobians[:TRAIN]
    precise = torch.einsum("ncw,ncd,ndv->wv", train, curvature, train) + 2.0 * torch.eye(WEIGHTS, dtype=torch.float64)
    places, others = torch.tensor([0, 7, 39]), torch.tensor([2, POOL + 1, POOL + 5])
    found = one.kernel(2.0, places, others).reshape(3 * (CLASSES - 1), -1)
    left, right = (jacobians[TRAIN + some].flatten(0, 1) for some in (places, others))
    assert torch.allclose(found, left @ torch.linalg.solve(precise, right.T), atol=2e-5)


def test_every_method_orders_the_rows_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """All start at the calibration rows alone, and with all rows labelled every order gives the same."""
    monkeypatch.setattr(labelling, "LABELS", (0, 5, POOL - LABELLED))
    one = Simulation(outputs()[0], 0)
    assert not set(one.free.tolist()) & set(one.labelled.tolist())
    for found in labelling.orders(one, POOL - LABELLED).values():
        assert all(sorted(order.tolist()) == list(range(POOL - LABELLED)) for order in found)
    curves = labelling.simulate(one)
    assert len({curve[0] for curve in curves.values()}) == 1
    last = [curve[POOL - LABELLED][0] for curve in curves.values()]
    assert last == pytest.approx([last[0]] * len(last), abs=1e-6)
    assert len({curve[5] for curve in curves.values()}) > 1
