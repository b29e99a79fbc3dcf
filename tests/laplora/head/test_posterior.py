"""A head's spread against the covariance of all its weights; its file; the gradient that its choice walks along."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from laplora.artifact.head_tensors import head_of, head_tensors
from laplora.head import HeadError, choice, fit, posterior, spaces
from laplora.head.folds import fold_numbers, parted
from laplora.head.rows import checked_rows

CLASSES = 3
PRECISIONS = {"a": 0.5, "b": 2.0, "constant": 0.7}


def problem(kind: str, count: int, width: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return two blocks, labels and a mask of 40 rows more than the labels."""
    draw = torch.Generator().manual_seed(2)
    shape = (count + 40, CLASSES, width) if kind == "options" else (count + 40, width)
    blocks = {name: torch.randn(shape, generator=draw).double() * 3 + 1 for name in ("a", "b")}
    labels = torch.randint(0, 2, (count,), generator=draw)
    if kind == "bernoulli":
        labels = torch.randint(0, 2, (count, CLASSES), generator=draw)
    mask = torch.ones(count + 40, CLASSES, dtype=torch.bool)
    mask[::3, 2] = kind == "bernoulli"
    return blocks, labels, mask


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "options"])
@pytest.mark.parametrize(("count", "width"), [(30, 4), (30, 40)])
def test_the_spread_is_that_of_all_weights(kind: str, count: int, width: int) -> None:
    """Variance and leverage in closed form, the average against many draws of weights."""
    blocks, labels, mask = problem(kind, count, width)
    one: Any = "bernoulli" if kind == "bernoulli" else "categorical"
    head = fit(
        {name: block[:count] for name, block in blocks.items()},
        labels,
        class_mask=mask[:count],
        likelihood=one,
        precisions={name: value for name, value in PRECISIONS.items() if kind != "options" or name != "constant"},
        honest=False,
    ).head
    designs, prior = [], []
    for name, block in blocks.items():
        scaled = head.scaling.apply(name, block, mask)
        if kind == "options":
            designs.append(scaled.view(count + 40, CLASSES, width))
        else:
            designs.append(torch.einsum("nw,cd->ncwd", scaled, torch.eye(CLASSES).double()).flatten(2))
        prior += [1 / PRECISIONS[name]] * designs[-1].shape[2]
    if kind != "options":
        designs.append(torch.eye(CLASSES).double().expand(count + 40, -1, -1))
        prior += [1 / PRECISIONS["constant"]] * CLASSES
    design, variances = torch.cat(designs, 2), torch.tensor(prior).double()
    if kind == "categorical":  # symmetric weights: a common shift has no prior, and no effect
        design = design - (design * mask[:, :, None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    design = design * mask[:, :, None]
    p = head.log_probs(blocks, class_mask=mask).exp()[:count]
    hessian = torch.diag_embed(p * (1 - p)) if one == "bernoulli" else torch.diag_embed(p) - p[:, :, None] * p[:, None]
    curvature = torch.einsum("ncw,ncd,ndv->wv", design[:count], hessian, design[:count])
    covariance = torch.linalg.inv(curvature + (1 / variances).diag())
    answers = head.predictive(blocks, class_mask=mask, points=4096)
    expected = torch.einsum("ncw,wv,ncv->nc", design, covariance, design)
    torch.testing.assert_close(answers.variance, expected, rtol=1e-4, atol=1e-5)
    weights = slice(design.shape[2] - (0 if kind == "options" else CLASSES))
    of_weights = torch.einsum("ncw,wv,ncv->n", design[..., weights], covariance[weights, weights], design[..., weights])
    before = (design.square() * variances)[..., weights].sum((1, 2))
    torch.testing.assert_close(answers.leverage, of_weights / before, rtol=1e-4, atol=1e-5)
    assert bool(((answers.leverage > 0) & (answers.leverage <= 1)).all())

    noise = torch.randn(20000, len(variances), generator=torch.Generator().manual_seed(0)).double()
    moved = torch.einsum("ncw,sw->nsc", design, noise @ torch.linalg.cholesky(covariance).T)
    logits = head.logits(blocks, class_mask=mask)[:, None] + moved
    draws = logits.sigmoid() if one == "bernoulli" else logits.masked_fill(~mask[:, None], -torch.inf).softmax(2)
    torch.testing.assert_close(answers.probs, draws.mean(1), rtol=0, atol=0.012)
    torch.testing.assert_close(answers.std, draws.std(1), rtol=0, atol=0.012)
    entropy = torch.special.entr(draws).sum(2)
    if one == "bernoulli":
        entropy = entropy + torch.special.entr(1 - draws).sum(2)
    torch.testing.assert_close(answers.expected_entropy, entropy.mean(1), rtol=0, atol=0.03)
    assert bool((answers.epistemic > 0).all())


@pytest.mark.parametrize("width", [4, 40])
def test_the_mean_curvature_is_exact_where_rows_are_alike(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Even targets leave every row with one Hessian: then KFAC's structure loses nothing."""
    blocks, _, _ = problem("categorical", 30, width)
    even = torch.full((70, CLASSES), 1 / CLASSES)
    exact = fit(blocks, even, precisions=PRECISIONS, honest=False).head
    monkeypatch.setattr(posterior, "MOST_EXACT", 0)
    structured = fit(blocks, even, precisions=PRECISIONS, honest=False).head
    assert structured.spread is not None
    assert structured.spread.inverse is None
    near = {name: block + 1 for name, block in blocks.items()}
    for field in ("variance", "leverage", "probs", "std"):
        first, second = (getattr(head.predictive(near, points=2048), field) for head in (exact, structured))
        torch.testing.assert_close(first, second, rtol=5e-3, atol=1e-3)


def test_a_wide_constant_beside_narrow_blocks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, labels, _ = problem("categorical", 50, 60)
    known, precisions = {name: block[:50] for name, block in blocks.items()}, {"a": 300.0, "b": 300.0, "constant": 1e-3}
    expected = fit(known, labels, precisions=precisions, honest=False).head.predictive(blocks)
    monkeypatch.setattr(spaces, "_DOUBLE_BYTES", 0)
    narrow = fit(known, labels, precisions=precisions, honest=False).head.predictive(blocks)
    torch.testing.assert_close(narrow.variance, expected.variance, rtol=1e-3, atol=0)


def test_a_head_is_its_tensors() -> None:
    """Through a file, bit for bit; with an offset's temperature, and options."""
    cases: list[tuple[str, dict[str, Any]]] = [("categorical", {"temper": True}), ("options", {}), ("bernoulli", {})]
    for kind, options in cases:
        blocks, labels, mask = problem(kind, 30, 5)
        known = {name: block[:30] for name, block in blocks.items()}
        offset = torch.randn(30, CLASSES) if "temper" in options else None
        one: Any = "bernoulli" if kind == "bernoulli" else "categorical"
        head = fit(known, labels, offset=offset, class_mask=mask[:30], likelihood=one, honest=False, **options).head
        again = head_of(load(save(head_tensors(head))))
        assert torch.equal(again.log_probs(known, offset, mask[:30]), head.log_probs(known, offset, mask[:30]))
        assert again.precisions == head.precisions
        assert torch.equal(again.predictive(known, offset).probs, head.predictive(known, offset).probs)
        for name, each in (whole := head_tensors(head)).items():
            damaged = (
                [torch.full_like(each, torch.nan), each.half()] if each.is_floating_point() and each.numel() else []
            )
            for odd in [None, *damaged[: 2 if name.startswith("weights") else 1]]:
                if name not in ("moments", "inverse", "inverse_temperature") or odd is not None:
                    with pytest.raises(HeadError, match="these tensors are no head"):
                        head_of(
                            {**whole, name: odd} if odd is not None else {k: v for k, v in whole.items() if k != name}
                        )


@pytest.mark.parametrize("width", [5, 60])
def test_the_choice_walks_along_the_losses_gradient(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(choice, "_CONVERGED", 1e-10)
    monkeypatch.setattr(choice, "_ADJOINT", 1e-6)
    blocks, labels, _ = problem("categorical", 60, width)
    rows = checked_rows({name: block[:60] for name, block in blocks.items()}, labels, offset=torch.randn(60, CLASSES))
    folds = [choice._Fold(rows, rest, fold, True, True) for rest, fold in parted(fold_numbers(60))]
    place = torch.tensor([2.0, 0.5, 0.2]).double().log()

    def loss(log_variances: torch.Tensor) -> float:
        return sum(fold.loss(log_variances.exp())[0] for fold in folds)

    slope = torch.stack([fold.loss(place.exp())[1] for fold in folds]).sum(0)
    steps = 0.01 * torch.eye(3, dtype=torch.float64)
    differences = torch.tensor([(loss(place + step) - loss(place - step)) / 0.02 for step in steps]).double()
    torch.testing.assert_close(slope, differences, rtol=0.01, atol=0.01)


def test_many_rows_take_little_memory() -> None:
    """8,000 rows of 200 features are 6 MB and their matrix would be 512: with a choice by folds far less is taken."""
    program = """
import resource, torch
from laplora.head import choice, fit
choice._KEPT_BYTES = 0
draw = torch.Generator().manual_seed(0)
states = torch.randn(8000, 200, generator=draw)
labels = (states[:, :3] + torch.randn(8000, 3, generator=draw)).argmax(1)
fit(states[:300], labels[:300], honest=False, folds=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(states, labels, honest=False, folds=2)
fit(states[:1000, :4], torch.arange(1000) % 400, honest=False, precisions={"features": 1.0})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 150_000  # kB
