"""Features of a pool against the exact kernel between its rows, under a real joint posterior."""

from __future__ import annotations

import pytest
import torch

from laplora.jacobians.blocks import BlockJacobian, ContrastJacobians
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.tensors import fit_jacobians
from laplora.selection.sketch import FeatureMap

SHAPES = {"a.lora_A": (4, 30), "a.lora_B": (20, 4), "b.lora_B": (25, 4)}
ROWS, CLASSES = 10, 3
PRIORS = [Prior("scalar", {"all": 0.4}), Prior("group", {"lora_A": 3.0, "lora_B": 0.2})]


def jacobians(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random Jacobians by weight that share a part, so that rows are alike."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {name: normal(rows, CLASSES - 1, *shape) + normal(1, CLASSES - 1, *shape) for name, shape in SHAPES.items()}


def fitted(structure: str) -> JointPosterior:
    """Return the posterior of 40 training rows."""
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    settings = StructureSettings(structure=structure, rank=2, joint_rank=6, basis_dtype=torch.float64)
    posterior = fit_jacobians([(logits, jacobians(40, 1))], settings)
    assert isinstance(posterior, JointPosterior)
    return posterior


def both(structure: str, prior: Prior, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kernel of the features and the exact one, (rows, contrasts, rows, contrasts)."""
    posterior = fitted(structure)
    given = jacobians(ROWS, 2)
    parts = tuple(given[b.name].mT if b.group == "lora_A" else given[b.name] for b in posterior.blocks)
    logits = torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    batch = ContrastJacobians(logits, logits, tuple(map(BlockJacobian, parts)))
    chart = FeatureMap.of(posterior, block_precisions(prior, posterior.blocks), size)
    features = chart.features(batch, posterior.project(batch)).double()
    assert features.shape == (ROWS, CLASSES - 1, chart.size)
    # All rows' contrasts as those of one row: its covariance holds the covariances between the rows.
    joined = tuple(BlockJacobian(part.flatten(0, 1)[None]) for part in parts)
    together = posterior.project(ContrastJacobians(logits[:1], logits[:1], joined))
    exact = posterior.covariance(together, block_precisions(prior, posterior.blocks))[0]
    exact = exact.view(ROWS, CLASSES - 1, ROWS, CLASSES - 1)
    return torch.einsum("ncf,mdf->ncmd", features, features), exact


@pytest.mark.parametrize("structure", ["exact", "joint", "joint_core"])
@pytest.mark.parametrize("prior", PRIORS, ids=["scalar", "group"])
def test_a_rows_own_covariance_is_exact_and_the_others_are_near(structure: str, prior: Prior) -> None:
    """A row's own block is exact at any size; the rest is wrong by about the root of 2 / size of the rows' norms."""
    for size, bound in ((64, 0.8), (4096, 0.1)):
        found, exact = both(structure, prior, size)
        norms = torch.einsum("ncnc->nc", exact).sqrt()
        wrong = (found - exact) / (norms[:, :, None, None] * norms)
        for row in range(ROWS):
            assert float(wrong[row, :, row].abs().max()) < 1e-4
        assert float(wrong.abs().max()) < bound
        assert float(wrong.square().mean().sqrt()) < 2 * (2 / size) ** 0.5


def test_the_map_is_the_same_every_time() -> None:
    """Nothing but the posterior and the size decides."""
    one, other = both("joint_core", PRIORS[0], 128)[0], both("joint_core", PRIORS[0], 128)[0]
    assert torch.equal(one, other)
