"""Which replica gets a request: Ray Serve's request-router extension point, fed with predicted finishes.

Serve pickles this module by value; `load_board` and `prefix_memory` are imported as modules so that their one board
and one memory are reached, not copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.serve.request_router import RequestRouter

from deployments import load_board, prefix_memory
from deployments.load import ReplicaLoad

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica


class WorkRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica where its plan is predicted to be finished first.

    Requests carry `ranked` and `excluded` replica ids (`ReplicaRequest`): the planner has predicted the finish on every
    replica, cached prefixes included. Replicas that it did not know come after those, least work first.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        load_board.BOARD.keep_only(names)
        prefix_memory.PREFIXES.keep_only(names)
        for replica in replicas:
            _report(replica)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        request: Any = None
        if pending_request is not None:
            # Without it a pass that finds every replica full would spin.
            pending_request.routing_context.should_backoff = True
            request = pending_request.args[0] if pending_request.args else None
        place = {name: rank for rank, name in enumerate(getattr(request, "ranked", ()))}
        excluded = getattr(request, "excluded", ())
        usable = []
        for replica in candidate_replicas:
            _report(replica)
            if replica.replica_id.unique_id not in excluded:
                usable.append(replica)

        def rank(replica: RunningReplica) -> tuple[int, float]:
            name = replica.replica_id.unique_id
            return (place.get(name, len(place)), load_board.BOARD.queue_s(name))

        # One replica per rank: inside a rank Serve would order them by queue length again.
        return [[replica] for replica in sorted(usable, key=rank)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request = pending_request.args[0] if pending_request.args else None
        if request is not None and hasattr(request, "work_s"):
            name = replica_id.unique_id
            load_board.BOARD.sent(name, request.request_id, request.work_s, request.slots)
            prefix_memory.PREFIXES.routed(name, request.request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        load_board.BOARD.forget(replica_id.unique_id)
        prefix_memory.PREFIXES.forget(replica_id.unique_id)


def _report(replica: RunningReplica) -> None:
    stats = replica.routing_stats
    if stats.get("replica") == replica.replica_id.unique_id:
        load_board.BOARD.report(ReplicaLoad.from_dict(stats))
