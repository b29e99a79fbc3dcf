"""Several processes fit what one does: each takes a share of the rows, and sums add up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shared_fits
import torch

#: Sums of float64 in another order, relative to the largest of a tensor. 3e-16 was seen.
ROUNDING = 1e-13
#: Of covariances, whose bases follow from the sums: 8e-16 was seen.
FOLLOWING = 1e-9


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By plan what each of its processes has found."""
    folder, tests = tmp_path_factory.mktemp("shared"), Path(shared_fits.__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    subprocess.run(
        [sys.executable, shared_fits.__file__, folder, tiny_base_folder],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return {
        plan.name: [torch.load(folder / f"{plan.name}-{rank}.pt") for rank in range(plan.count)]
        for plan in shared_fits.PLANS
    }


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    assert one.shape == other.shape
    return float((one.double() - other.double()).abs().max() / one.double().abs().max())


@pytest.mark.parametrize("plan", shared_fits.PLANS[1:], ids=lambda plan: plan.name)
def test_the_sums_are_those_of_one_process_to_rounding(found: Any, plan: shared_fits.Plan) -> None:
    """Also where one process has begun and two go on."""
    (alone,), (first, *others) = found["one"], found[plan.name]
    assert len(others) == plan.count - 1
    for structure in plan.structures:
        mine, theirs = alone[structure], first[structure]
        assert mine["sums"].keys() == theirs["sums"].keys()
        assert mine["sums"]
        for name, sums in mine["sums"].items():
            assert difference(sums, theirs["sums"][name]) < ROUNDING, (structure, name)
        assert difference(mine["likelihood"], theirs["likelihood"]) < ROUNDING
        assert torch.equal(mine["logits"], theirs["logits"])
        assert difference(mine["covariance"], theirs["covariance"]) < FOLLOWING

        # Every process has the same bits, and the first alone writes.
        for other in others:
            assert not other[structure]["sums"]
            for name in ("likelihood", "covariance", "logits"):
                assert torch.equal(first[structure][name], other[structure][name])


def test_an_error_of_the_first_process_ends_all(found: Any) -> None:
    for plan in shared_fits.PLANS:
        assert [one["raised"] for one in found[plan.name]] == ["in the first process"] * plan.count
