"""Fixtures of all tests: one torch thread, finished training runs, and one dense truth per kind of model.

One thread because the models here are too small to share out: waking a second costs more than it computes, and
sums could be split differently from run to run. Examples that Hypothesis draws have no time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import dense_reference as dense
import pytest
import torch
from decision_server import DecisionServer, decision_server
from dense_reference import Problem
from hypothesis import HealthCheck, settings
from tiny_models import ARCHITECTURES, Architecture, tiny_model, tiny_task

pytest_plugins = ["tiny_runs"]

torch.set_num_threads(1)
settings.register_profile("no-limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-limits")


@pytest.fixture(params=ARCHITECTURES)
def problem(request: pytest.FixtureRequest) -> Problem:
    """A three-class problem for each kind of model."""
    return problem_of(request.param)


@pytest.fixture
def model() -> Iterator[DecisionServer]:
    """A decision model that is served until the test ends."""
    with decision_server() as server:
        yield server


@cache
def problem_of(architecture: Architecture) -> Problem:
    """Return it, made once: pytest would drop a fixture of the session at every change of its parameter.

    60 examples: two gradients each is more than the 48 outputs of Phi-3's fused projection, so that every
    factor has full rank and its eigenvectors are determined.
    """
    model = tiny_model(architecture)
    task = tiny_task(examples=60)
    return Problem(model, task, dense.truth(model, task.batch(), task.label_ids))
