"""The router: one process's planning, the handle to the replicas, and what it knows of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.answering import Answering
from deployments.autoscaling import read_decision
from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.metrics import AUTOSCALING_TIMEOUT_S, RouterMetrics
from deployments.moving import Mover
from deployments.openai_types import ApiRequest, ChatCompletionRequest
from deployments.planning import Planning
from deployments.prefix_memory import PREFIXES
from deployments.process import for_serving
from deployments.thinking import ThinkingSplit

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from deployments.job import Job
    from deployments.settings import AppArgs
    from engine.request import GenerationOptions

log = logging.getLogger("ray.serve")


class Router:
    """Plans requests and streams their answers from the replicas."""

    def __init__(self, handle: DeploymentHandle, args: AppArgs) -> None:
        self.args = args
        self.handle = handle.options(stream=True)
        self.planning = Planning(args)
        self.tokenizer = self.planning.tokenizer
        self.application: str = serve.get_replica_context().app_name
        self.metrics = RouterMetrics()
        self.mover = Mover()
        self.metrics.tell_floors(args.tiers, self.planning.quality.ladder)
        if args.kv_tokens is not None:
            PREFIXES.pages_kept = max(1, args.kv_tokens // self.planning.model.block_size)
        for_serving(beside_an_engine=False)

    async def find_replicas(self) -> None:
        """Asks all replicas for their load; the first call also makes Serve tell this process which ones there are."""
        for load in await self.of_replicas("record_routing_stats"):
            BOARD.report(ReplicaLoad.from_dict(load))

    async def of_replicas(self, method: str) -> list[Any]:
        """What the replicas answer to a method without arguments. One that just died has none, and spoils no other."""
        try:
            answers = await self.handle.broadcast(method).results_async(return_exceptions=True)
        except (DeploymentUnavailableError, RayActorError) as error:
            log.info("no replica answers %s: %s", method, error)
            return []
        said = []
        for answer in answers:
            if isinstance(answer, Exception):
                log.warning("a replica did not answer %s: %s", method, answer)
            else:
                said.append(answer)
        return said

    async def read_autoscaling(self) -> None:
        """Takes the autoscaler's last decision, which its policy leaves in the cluster's store, into the metrics."""
        if self.args.min_replicas == self.args.max_replicas:
            return
        try:
            reading = asyncio.to_thread(read_decision, self.application)
            self.metrics.autoscaling.decision = await asyncio.wait_for(reading, AUTOSCALING_TIMEOUT_S)
        except TimeoutError:
            log.warning("the cluster's store did not answer; the autoscaling metrics are those of the last time")

    def answer(self, job: Job) -> Answering:
        return Answering(self, job)

    def thinking_of(self, request: ApiRequest) -> ThinkingSplit | None:
        """What tells thinking from answer, for a chat that was asked to think."""
        if not isinstance(request, ChatCompletionRequest) or not request.template_options()[0]:
            return None
        close_id = None if self.tokenizer is None else self.tokenizer.think_close_id
        return None if self.tokenizer is None or close_id is None else ThinkingSplit(close_id, self.tokenizer.decode)

    def think_ids(self) -> tuple[int, int] | None:
        """Ids of the thinking markers; None where the model has none."""
        if self.tokenizer is None:
            return FAMILY_THINK_IDS
        opened, closed = self.tokenizer.think_open_id, self.tokenizer.think_close_id
        return None if opened is None or closed is None else (opened, closed)

    def end_ids(self, options: GenerationOptions) -> set[int]:
        """Tokens that end an answer."""
        eos = set() if options.ignore_eos else set(self.planning.model.eos_token_ids)
        return eos | set(options.stop_token_ids)


FAMILY_THINK_IDS = (12, 13)
"""Of checkpoints without a tokenizer (contract section 6), as the engine takes them."""
