"""What Ray raises in the place of an answer: a replica that cannot be reached, or an error of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray import exceptions
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from service.backends.ray.replicas import ReplicaGoneError
from service.ray_serve.app import _ServeCalls


class Handle:
    """A deployment's handle whose calls raise."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def options(self, **values: Any) -> Handle:
        return self

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(self._error)
        return answer


def call(error: Exception) -> Any:
    calls: Any = _ServeCalls(Handle(error))  # type: ignore[arg-type]
    return asyncio.run(calls.call("a", "predict"))


LOST = [
    exceptions.OutOfMemoryError("full"),
    exceptions.ObjectLostError("id", None, "stack"),
    exceptions.NodeDiedError("gone"),
    exceptions.ActorDiedError(),
    exceptions.TaskCancelledError(),
    ReplicaUnavailableError("a"),
    DeploymentUnavailableError("scorer"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_replica_that_cannot_be_reached_is_gone(error: Exception) -> None:
    with pytest.raises(ReplicaGoneError, match=type(error).__name__):
        call(error)


def test_an_error_of_a_replicas_own_code_is_not_one_of_its_going() -> None:
    error = exceptions.RayTaskError("predict", "trace", ValueError("wrong")).as_instanceof_cause()
    with pytest.raises(ValueError, match="trace"):
        call(error)
