"""Which replica gets a request: Ray Serve's request-router extension point, fed with loads in seconds of work.

Serve pickles this module by value; `load_board` is imported as a module so that its one board is reached, not copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.serve.request_router import RequestRouter

from deployments import load_board
from deployments.load import ReplicaLoad

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica


class WorkRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica that its plan was made for, else to the one with the least work.

    Requests carry `preferred` and `excluded` replica ids (`ReplicaRequest`).
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        load_board.BOARD.keep_only({replica.replica_id.unique_id for replica in replicas})
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
        preferred = getattr(request, "preferred", None)
        excluded = getattr(request, "excluded", ())
        usable = []
        for replica in candidate_replicas:
            _report(replica)
            if replica.replica_id.unique_id not in excluded:
                usable.append(replica)

        def rank(replica: RunningReplica) -> tuple[bool, float]:
            name = replica.replica_id.unique_id
            return (name != preferred, load_board.BOARD.queue_s(name))

        # One replica per rank: inside a rank Serve would order them by queue length again.
        return [[replica] for replica in sorted(usable, key=rank)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request = pending_request.args[0] if pending_request.args else None
        if request is not None and hasattr(request, "work_s"):
            load_board.BOARD.sent(replica_id.unique_id, request.request_id, request.work_s, request.slots)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        load_board.BOARD.forget(replica_id.unique_id)


def _report(replica: RunningReplica) -> None:
    stats = replica.routing_stats
    if stats.get("replica") == replica.replica_id.unique_id:
        load_board.BOARD.report(ReplicaLoad.from_dict(stats))
