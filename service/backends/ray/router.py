"""How a call reaches the replica that it is meant for: the backend has chosen one by name, and this finds it.

Ray Serve loads the class in the process that calls. It must know nothing of this module's globals, as it may be pickled
by value.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class DirectRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call to the replica that its model id names, or, where that one is gone or none is named, to any."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in which replicas there are."""
        from service.backends.ray.present import PRESENT

        super().update_replicas(replicas)
        PRESENT.tell(self._deployment_id.name, (replica.replica_id.unique_id for replica in replicas))

    def on_replica_actor_died(self, replica_id) -> None:  # type: ignore[no-untyped-def]
        """Leave out a replica that is dead before the controller says so."""
        from service.backends.ray.present import PRESENT

        super().on_replica_actor_died(replica_id)
        PRESENT.tell(self._deployment_id.name, (one.unique_id for one in self._replicas))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replica that is named, else all."""
        name = "" if pending_request is None else pending_request.metadata.multiplexed_model_id
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == name]
        return [named or candidate_replicas]
