"""Covariances from few directions: exact where all are computed, and proper where the rest is filled in."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path import Rows, close, replay, rows_of
from joint_problem import PRIOR
from safetensors.torch import save_file
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.jacobians.many_classes import fisher_directions
from laplora.linearised import contrast_hessian
from laplora.posterior.base import Posterior, block_precisions
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.posterior.many_classes import ManyClassPosterior, check_class_count, choose_of, completed_covariance
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior

CLASSES = 20
SETTINGS = StructureSettings("joint_core", rank=5, joint_rank=30, basis_dtype=torch.float64)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, tuple[Block, ...]]:
    """A model, rows of twenty classes, and its blocks."""
    model, task = tiny_model("llama"), tiny_task(examples=16, classes=CLASSES)
    return model, task, find_blocks(model, CLASSES)


@pytest.fixture(scope="module")
def exact(tiny: tuple[Any, Any, tuple[Block, ...]]) -> tuple[Posterior, list[Rows]]:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=16)
    return fit_posterior(SETTINGS, blocks, replay(rows)), rows


def many(exact: tuple[Posterior, list[Rows]], directions: int) -> ManyClassPosterior:
    posterior, rows = exact
    return ManyClassPosterior(posterior, posterior.project(rows[0].jacobians), directions)


def few_jacobians(tiny: tuple[Any, Any, tuple[Block, ...]], posterior: Posterior, rows: list[int]) -> Any:
    model, task, blocks = tiny
    choose = choose_of(posterior)
    return contrast_jacobians(model, task.batch(rows), task.label_ids, blocks, sums=False, choose=choose)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_fitted_from_chosen_directions_in_batches(tiny: Any, structure: str) -> None:
    """By a row's own draws, so that batches do not matter; of the joint core through a sketch of few columns too."""
    model, task, blocks = tiny

    def covariance(size: int) -> torch.Tensor:
        rows = []
        for start in range(0, 16, size):
            batch, places = task.batch(range(start, min(start + size, 16))), range(start, min(start + size, 16))
            choose = fisher_directions(2, 2, places, seed=0)
            rows.append(Rows(contrast_jacobians(model, batch, task.label_ids, blocks, choose=choose), batch.class_mask))
        posterior = fit_posterior(replace(SETTINGS, structure=structure), blocks, replay(rows))
        jacobians = contrast_jacobians(model, task.batch(), task.label_ids, blocks)
        return posterior.covariance_of(jacobians, block_precisions(PRIOR, blocks))

    found = covariance(5)
    close(found, covariance(16), 1e-6)
    eigenvalues = torch.linalg.eigvalsh(found)
    assert float(eigenvalues.min()) > -1e-8 * float(eigenvalues.max())


def test_all_directions_give_the_exact_covariance(tiny: Any, exact: Any) -> None:
    """Those beyond the contrasts, which a file may ask for, would be zero and cost a backward pass each."""
    posterior = many(exact, 9999)
    precisions = block_precisions(PRIOR, posterior.blocks)
    jacobians = few_jacobians(tiny, posterior, list(range(16)))
    assert jacobians.directions.shape == (CLASSES - 1, 16, CLASSES)
    found = posterior.covariance_of(jacobians, precisions)
    truth = exact[0].covariance_of(exact[1][0].jacobians, precisions)
    mask = exact[1][0].class_mask
    full = mask.all(1)  # a row with fewer possible classes has no direction at the impossible ones
    close(found[full], truth[full], 1e-6)  # directions are not orthonormal: the average's condition enters
    possible = mask[~full][:, 1:]
    inner = possible[:, :, None] & possible[:, None, :]
    close(found[~full].where(inner, 0), truth[~full].where(inner, 0), 1e-6)


def test_the_covariance_is_exact_along_the_directions_and_more_leave_less_to_fill_in(tiny: Any, exact: Any) -> None:
    mask, shares = exact[1][0].class_mask, []
    for directions in (1, 3, 6, CLASSES - 1):
        posterior = many(exact, directions)
        jacobians = few_jacobians(tiny, posterior, list(range(16)))
        precisions = block_precisions(PRIOR, posterior.blocks)
        projected = posterior.project(jacobians)
        found = posterior.covariance(projected, precisions)
        truth = exact[0].covariance_of(exact[1][0].jacobians, precisions)
        chosen = projected.directions
        close(chosen.mT @ found @ chosen, chosen.mT @ truth @ chosen, 1e-6 if directions > 6 else 1e-9)
        eigenvalues = torch.linalg.eigvalsh(found)
        assert float(eigenvalues.min()) > -1e-9 * float(eigenvalues.max())
        alone = posterior.covariance_of(few_jacobians(tiny, posterior, [5]), precisions)
        close(alone[0], found[5], 1e-6)
        share = posterior.filled_in_share(projected, jacobians.logits, mask, precisions)
        assert bool(((share >= 0) & (share <= 1)).all())
        shares.append(float(share.mean()))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1e-6


def test_a_reference_rows_error_is_that_of_a_posterior_without_it(tiny: Any, exact: Any) -> None:
    """By the door of answers: Jacobians of the chosen directions alone, against those of all contrasts."""
    posterior, mask = many(exact, 3), exact[1][0].class_mask
    full = mask.all(1).nonzero()[:5, 0]  # reference rows count with all classes possible
    posterior = replace(posterior, reference=posterior.reference.take(full))
    precisions = block_precisions(PRIOR, posterior.blocks)
    errors = posterior.reference_errors(precisions)
    truth = exact[0].covariance_of(exact[1][0].jacobians, precisions)[full]
    for place, row in enumerate(full.tolist()):
        others = torch.arange(len(full)) != place
        without = replace(posterior, reference=posterior.reference.take(others))
        jacobians = few_jacobians(tiny, without, [row])
        hessian = contrast_hessian(jacobians.logits, mask[row : row + 1])[0]
        found = without.covariance_of(jacobians, precisions)[0]
        expected = abs(float((hessian @ found).trace() / (hessian @ truth[place]).trace()) - 1)
        assert float(errors[place]) == pytest.approx(expected, abs=1e-6)
    assert float(errors.max()) > 1e-3
    assert float(replace(posterior, directions=CLASSES - 1).reference_errors(precisions).max()) < 1e-6
    alone = replace(posterior, reference=posterior.reference.take(full[:1]))
    assert len(alone.reference_errors(precisions)) == 0


def test_a_covariance_like_the_average_is_completed_exactly() -> None:
    half = torch.randn(7, 7, dtype=torch.float64, generator=generator(0))
    average, directions = half @ half.T, torch.randn(1, 7, 2, dtype=torch.float64, generator=generator(1))
    truth = 3.5 * average
    found = completed_covariance(directions.mT @ truth @ directions, directions, average)
    close(found[0], truth, 1e-10)
    with_none = torch.cat([directions, torch.zeros(1, 7, 1, dtype=torch.float64)], 2)
    close(completed_covariance(with_none.mT @ truth @ with_none, with_none, average)[0], truth, 1e-10)


def test_a_file_gives_the_posterior_back(tiny: Any, exact: Any, tmp_path: Path) -> None:
    posterior = many(exact, 4)
    tensors, metadata = posterior_tensors(posterior, "float32")
    save_file(tensors, tmp_path / "posterior.safetensors", metadata)
    found = read_posterior(tmp_path / "posterior.safetensors", tiny[2])
    assert isinstance(found, ManyClassPosterior)
    assert found.directions == 4
    close(found.reference.rest, posterior.reference.rest, 1e-6)
    precisions = block_precisions(PRIOR, posterior.blocks)
    jacobians = few_jacobians(tiny, posterior, [0, 1, 2])
    close(found.covariance_of(jacobians, precisions), posterior.covariance_of(jacobians, precisions), 1e-4)
    check_class_count(found, CLASSES)
    with pytest.raises(ArtifactCorruptError, match="have 20 classes, there are 3"):
        check_class_count(found, 3)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("kept", lambda t: t[:, :, :-1], "not this posterior's"),
        ("rest", lambda t: t[:, :-1], "not those of"),
        ("rest", lambda t: t - 1e6 * torch.eye(t.shape[1])[..., None], "not positive"),
        (".*", lambda t: 0 * t, "are 0"),
    ],
)
def test_damaged_reference_rows_are_refused(
    tiny: Any, exact: Any, tmp_path: Path, part: str, change: Any, message: str
) -> None:
    tensors, metadata = posterior_tensors(many(exact, 4), "float32")
    file = tmp_path / "posterior.safetensors"
    save_file(tensors, file, metadata | {"directions": "0"})
    with pytest.raises(ArtifactCorruptError, match="how many directions"):
        read_posterior(file, tiny[2])
    damaged = {n: change(t).contiguous() if re.fullmatch(f"reference.{part}", n) else t for n, t in tensors.items()}
    save_file(damaged, file, metadata)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(file, tiny[2])
