"""A tensor-parallel replica in Ray: its placement group, and the actors that are its other ranks.

A replica with `tp` above 1 has a placement group of `tp` equal bundles on one node. The replica actor is rank 0 and
takes bundle 0; each other rank is an actor in the bundle of its number, so that Ray assigns every rank its own GPU.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from deployments.settings import AppArgs


def placement(args: AppArgs) -> dict[str, Any]:
    """Deployment options that reserve what a replica needs: of one rank, or a placement group for all of its ranks."""
    options: dict[str, Any] = {"ray_actor_options": _reserved(args)}
    if args.tp > 1:
        bundle = {"CPU": args.replica_cpus, "GPU": args.replica_gpus}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        options["placement_group_bundles"] = [dict(bundle) for _ in range(args.tp)]
        # The ranks exchange tensors twice per layer and forward, and share a directory: one node.
        options["placement_group_strategy"] = "STRICT_PACK"
    return options


class Rank:
    """The actor of a rank other than 0."""

    def run(self, directory: str, rank: int) -> None:
        """Serves until rank 0 is gone. Raises what made this rank fail."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from engine.group.worker import run_worker

        run_worker(directory, rank)


class RankActor:
    """A rank's actor, as rank 0's group sees it (`engine/group/leader.py`)."""

    def __init__(self, actor: Any, directory: str, rank: int) -> None:
        self._actor = actor
        self._run: Future[None] = actor.run.remote(directory, rank).future()

    def ended(self) -> str | None:
        if not self._run.done():
            return None
        error = self._run.exception()
        return "its actor left the group" if error is None else f"its actor ended: {error}"

    def death(self) -> RayActorError | None:
        """Ray's word on how the actor died, None where it lives or ended by an error of its own."""
        error = self._run.exception() if self._run.done() else None
        return error if isinstance(error, RayActorError) else None

    def stop(self) -> None:
        ray.kill(self._actor)


class ActorLauncher:
    """Starts the ranks of one replica in the replica's placement group."""

    def __init__(self, args: AppArgs) -> None:
        self._args = args
        self._ranks: list[RankActor] = []

    def __call__(self, directory: str, rank: int) -> RankActor:
        strategy = PlacementGroupSchedulingStrategy(get_current_placement_group(), placement_group_bundle_index=rank)
        actor = ray.remote(Rank).options(scheduling_strategy=strategy, **_reserved(self._args)).remote()
        started = RankActor(actor, directory, rank)
        self._ranks.append(started)
        return started

    def raise_death(self) -> None:
        """Raises the RayActorError of a rank that died: from a health check it makes Serve replace the replica at once,
        instead of after three checks."""
        for rank in self._ranks:
            death = rank.death()
            if death is not None:
                raise death


def _reserved(args: AppArgs) -> dict[str, Any]:
    """Ray's options for the actor of one rank."""
    options: dict[str, Any] = {"num_cpus": args.replica_cpus}
    if args.replica_gpus:
        options["num_gpus"] = args.replica_gpus
    return options
