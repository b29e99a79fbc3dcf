"""From Jacobians to the exact posterior's covariances, each against a dense computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import generator, tiny_model, tiny_task

from benchmarks.evidence.grams import jacobian_store, products_of_bfloat16, subset_blocks
from benchmarks.evidence.methods.laplace import spectrum
from benchmarks.evidence.outputs import LAST_LAYER, Kernel, Outputs, Rows
from benchmarks.evidence.plan import SUBSETS, Training, Unit
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts

TRAIN, POOL, TEST, CLASSES, WIDTH = 12, 8, 6, 3, 5


def random_rows(count: int, seed: int) -> Rows:
    draw = generator(seed)
    logits = 2 * torch.randn(count, CLASSES, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    states = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    return Rows(logits, torch.ones(count, CLASSES, dtype=torch.bool), labels, states)


def outputs_of(jacobians: torch.Tensor) -> Outputs:
    """Return arrays whose kernel "all" is that of these Jacobians (rows, contrasts, parameters)."""
    rows = [random_rows(count, seed) for seed, count in enumerate((TRAIN, POOL, TEST))]
    flat, left = jacobians.flatten(0, 1), (TRAIN + POOL) * (CLASSES - 1)
    own = (jacobians @ jacobians.mT)[TRAIN + POOL :]
    kernel = Kernel((flat[:left] @ flat.T).float(), own.float(), TRAIN, CLASSES - 1)
    draws = torch.tensor([[0, 3, 5], [1, 2, 7]])
    return Outputs(Unit(Training("trec", 18, 0), "long"), *rows, draws, memo={"kernel all": kernel})


def dense_covariance(outputs: Outputs, jacobians: torch.Tensor, precision: float) -> torch.Tensor:
    """Return every row's covariance by the posterior's precision matrix itself."""
    half = (outputs.train.curvature_root @ jacobians[:TRAIN]).flatten(0, 1)
    matrix = half.T @ half + precision * torch.eye(half.shape[1], dtype=torch.float64)
    return jacobians @ torch.linalg.solve(matrix, jacobians.mT)


@pytest.mark.parametrize("precision", [1e-2, 1.0, 300.0])
def test_the_spectrum_gives_the_dense_posteriors_covariances(precision: float) -> None:
    jacobians = torch.randn(TRAIN + POOL + TEST, CLASSES - 1, 40, generator=generator(5), dtype=torch.float64)
    outputs = outputs_of(jacobians)
    places = torch.arange(POOL + TEST)
    found = spectrum(outputs, "all").covariance(places, precision)
    expected = dense_covariance(outputs, jacobians, precision)[TRAIN:]
    # The Gram matrix is float32: a part in 1e7 of the prior's own covariance, J J^T / precision.
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-4 / precision)


def test_the_last_layers_kernel_is_that_of_its_jacobians() -> None:
    rows = [random_rows(count, seed) for seed, count in enumerate((TRAIN, POOL, TEST))]
    outputs = Outputs(Unit(Training("trec", 18, 0), "long"), *rows, torch.tensor([[0, 1]]))
    states = torch.cat([part.states for part in rows])
    # The logits are states @ W.T, so the Jacobian of contrast c with respect to W is q_c x^T.
    jacobians = torch.einsum("kc,nw->nckw", contrasts(CLASSES), states).flatten(2)
    flat = jacobians.flatten(0, 1)
    kernel = outputs.kernel(LAST_LAYER)
    assert torch.allclose(kernel.gram.double(), (flat @ flat.T)[: len(kernel.gram)], atol=1e-5)
    assert torch.allclose(kernel.test_diagonal.double(), (jacobians @ jacobians.mT)[-TEST:], atol=1e-5)


def test_the_store_gives_inner_products_of_every_subset(tmp_path: Path) -> None:
    model, task = tiny_model("llama", targets=["q_proj", "v_proj"], dtype=torch.float32), tiny_task(examples=10)
    task = replace(task, rows=[replace(row, class_count=task.classes) for row in task.rows])
    blocks = find_blocks(model, task.classes)
    found = contrast_jacobians(model, task.batch(), task.label_ids, blocks, sums=False)
    halves = [list(range(0, 10, 2)), list(range(1, 10, 2))]
    with jacobian_store(tmp_path / "jacobians", blocks, 10, task.classes - 1) as store, products_of_bfloat16():
        for index in halves:
            store.write(index, contrast_jacobians(model, task.batch(index), task.label_ids, blocks, sums=False))
        grams = {subset: (gram.clone(), own.clone()) for subset, gram, own in store.grams(left=7)}
    assert not (tmp_path / "jacobians").exists()
    assert torch.get_float32_matmul_precision() == "highest"
    sizes = []
    for subset in SUBSETS:
        names = {block.name for block in subset_blocks(blocks, subset)}
        parts = [b.jacobian.flatten(2) for block, b in zip(blocks, found.blocks, strict=True) if block.name in names]
        kept = torch.cat(parts, 2).double()
        flat, (gram, own) = kept.flatten(0, 1), grams[subset]
        # bfloat16 keeps 8 bits of each entry: 2^-9 of its size, and errors add up as random ones do.
        tolerance = 2.0**-6 * float(kept.square().sum(2).max())
        assert torch.allclose(gram.double(), (flat @ flat.T)[: len(gram)], atol=tolerance)
        assert torch.allclose(own.double(), (kept @ kept.mT)[7:], atol=tolerance)
        sizes.append(len(names))
    assert sizes == [2, 4, 8]
