"""Ray's routers as they are used here: a call reaches whom it names, and nothing of it stays behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from service.backends.ray.router import AnyRouter, DirectRouter

pytestmark = pytest.mark.anyio

DEPLOYMENT = DeploymentID("of-a-test")


class Replica:
    """One that takes whatever comes."""

    node_id, availability_zone, max_ongoing_requests = "node", None, 1000
    multiplexed_model_ids = frozenset[str]()

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


class Rows(list[str]):
    """What a call carries; a list alone has no weak references."""


@pytest.mark.parametrize("kind", [DirectRouter, AnyRouter])
async def test_nothing_of_a_call_stays_with_the_router(kind: Any) -> None:
    """Ray's own keeps each call by its model id, which a client may send in a header, for ever."""
    router = kind(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas([Replica(name) for name in "abc"])
    sent = list[weakref.ref[Rows]]()
    for number in range(30):
        name, rows = "abc"[number % 3], Rows(["a row"])
        sent.append(weakref.ref(rows))
        request = PendingRequest(args=[rows], kwargs={}, metadata=RequestMetadata(str(number), str(number)))
        request.metadata.multiplexed_model_id = name if number < 15 else f"{name}{number}"
        found = await router._choose_replica_for_request(request)
        if kind is DirectRouter and number < 15:
            assert found.replica_id.unique_id == name
    del request, rows
    gc.collect()
    assert [one() for one in sent] == [None] * 30
