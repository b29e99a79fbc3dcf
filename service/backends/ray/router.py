"""How a call reaches a replica: a scorer is chosen by the backend, by name, and its router finds it.

Ray Serve loads these classes in the process that calls. They must know nothing of this module's globals, as they may be
pickled by value.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class AnyRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call to any replica, whatever model id it has: of the ingress, whose clients may send one in a header."""

    def _add_pending_request_to_indices(self, pending_request: PendingRequest) -> None:
        """Take in a call by its own id alone.

        By its model id Ray keeps it too, with all that it carries, and only its router for models ever lets go of it.
        """
        super()._add_pending_request_to_indices(pending_request)
        self._pending_requests_by_model_id.clear()

    @property
    def max_num_routing_tasks(self) -> int:
        """Most calls that are routed at once: all."""
        return 2**31

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        return [candidate_replicas]


class DirectRouter(AnyRouter):
    """Sends a call to the replica that its model id names, or, where that one is gone or none is named, to any."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
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
