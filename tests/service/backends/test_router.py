"""Ray's routers as they are used here: a call reaches whom it names, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from service.backends.ray.router import AnyRouter, DirectRouter

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
