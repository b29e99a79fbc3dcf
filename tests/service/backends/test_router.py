"""Ray as it is used here: a call reaches whom it names, nothing of it stays behind, and what is raised in its place."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from ray import exceptions
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.request_router import PendingRequest

from service.backends.ray.replicas import ReplicaGoneError
from service.backends.ray.router import AnyRouter, DirectRouter
from service.ray_serve.app import _ServeCalls

pytestmark = pytest.mark.anyio

DEPLOYMENT = DeploymentID("of-a-test")


class Replica:
    """One that takes whatever comes."""

    node_id, availability_zone, max_ongoing_requests = "node", None, 1000
    multiplexed_model_ids = frozenset[str]()

    def __init__(self, name: str, *, reachable: bool = True) -> None:
        self.replica_id, self.reachable = ReplicaID(name, DEPLOYMENT), reachable

    async def get_queue_len(self, *, deadline_s: float) -> int:
        if not self.reachable:
            raise ActorUnavailableError("of a test", None)
        return 0


class Rows(list[str]):
    """What a call carries; a list alone has no weak references."""


def request(number: int, name: str, *rows: object) -> PendingRequest:
    metadata = RequestMetadata(str(number), str(number), multiplexed_model_id=name)
    return PendingRequest(args=[*rows], kwargs={}, metadata=metadata)


async def test_calls_of_a_replica_that_cannot_be_reached_keep_none_of_another_waiting() -> None:
    """Ray routes a few calls at a time, and these again and again."""
    router: Any = DirectRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas([Replica("a", reachable=False), Replica("b")])
    lost = [asyncio.ensure_future(router._choose_replica_for_request(request(n, "a"))) for n in range(20)]
    await asyncio.sleep(0.1)
    for number in range(20, 40):
        found = await asyncio.wait_for(router._choose_replica_for_request(request(number, "b")), 60)
        assert found.replica_id.unique_id == "b"
    assert not any(one.done() for one in lost)
    for one in lost:
        one.cancel()
    await asyncio.wait(lost)


@pytest.mark.parametrize("kind", [DirectRouter, AnyRouter])
async def test_nothing_of_a_call_stays_with_the_router(kind: Any) -> None:
    """Ray's own keeps each call by its model id, which a client may send in a header, for ever."""
    router = kind(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas([Replica(name) for name in "abc"])
    sent = list[weakref.ref[Rows]]()
    for number in range(30):
        name, rows = "abc"[number % 3], Rows(["a row"])
        sent.append(weakref.ref(rows))
        sending = request(number, name if number < 15 else f"{name}{number}", rows)
        found = await router._choose_replica_for_request(sending)
        if kind is DirectRouter and number < 15:
            assert found.replica_id.unique_id == name
    del sending, rows
    gc.collect()
    assert [one() for one in sent] == [None] * 30


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
