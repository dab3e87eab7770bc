"""The router's decisions: what a request means here (tokens, tier, goal, seed), and the plan that it gets."""

from __future__ import annotations

import logging
import math
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.answering import Answering
from deployments.history import OutputLengths, Quantile
from deployments.job import Job
from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.metrics import RouterMetrics
from deployments.openai_types import COMPLETION_MAX_TOKENS, ApiRequest, ChatCompletionRequest, CompletionRequest
from deployments.planner import REFUSAL_MARGIN, Goal, Planned, Refusal, goal_of, make_plan, refuse, rungs_for
from deployments.prediction import Size, predict, total_slots
from deployments.quality import read_quality_map
from deployments.settings import AppArgs
from deployments.thinking import ThinkingSplit
from deployments.tiers import find_tier
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import InvalidRequest
from engine.plan import Rung
from engine.request import GenerationOptions, scheduled_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("ray.serve")

PRIOR_OVERHEAD_MS = 25.0
PRIOR_IDLE_OVERHEAD_MS = 10.0
SEED_BITS = 48
"""Seeds that every JSON reader can hold exactly."""
LATENCY_HEADER, TTFT_HEADER = "x-stepdial-latency-slo-ms", "x-stepdial-ttft-slo-ms"
LLMD_TTFT_HEADER, LLMD_TPOT_HEADER = "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"


class Router:
    """Plans requests and streams their answers from the replicas."""

    def __init__(self, handle: DeploymentHandle, args: AppArgs) -> None:
        self.args = args
        self.handle = handle.options(stream=True)
        self.model = ModelConfig.from_dir(args.model)
        self.tokenizer = Tokenizer.from_dir(args.model)
        self.quality = read_quality_map(args.model, self.model.block_size)
        self.metrics = RouterMetrics()
        self.lengths = OutputLengths(args.expected_output_tokens)
        self.overhead_ms = Quantile(PRIOR_OVERHEAD_MS)
        self.idle_overhead_ms = Quantile(PRIOR_IDLE_OVERHEAD_MS, q=0.1)

    @property
    def context(self) -> int:
        return self.model.max_position_embeddings

    async def find_replicas(self) -> None:
        """Asks all replicas for their load; the first call also makes Serve tell this process which ones there are."""
        try:
            stats = await self.handle.broadcast("record_routing_stats").results_async()
        except (DeploymentUnavailableError, RayActorError) as error:
            log.info("no replica answers yet: %s", error)
            return
        for load in stats:
            BOARD.report(ReplicaLoad.from_dict(load))

    def answer(self, job: Job) -> Answering:
        return Answering(self, job)

    def job(self, request: ApiRequest, headers: Mapping[str, str], request_id: str, arrived_s: float) -> Job:
        """Checks a request and says what it means. Raises InvalidRequest naming the field."""
        prompt, field = self._prompt(request)
        if isinstance(request, CompletionRequest) and request.max_tokens is None:
            request.max_tokens = min(COMPLETION_MAX_TOKENS, max(1, self.context - len(prompt)))
        self._check_prompt(prompt, request, field)
        output_tokens = self.lengths.bound(len(prompt), request.max_tokens or self.context - len(prompt))
        apply_headers(request, headers, output_tokens)
        request.check(self.model.block_size, self.model.vocab_size)
        if request.stop and self.tokenizer is None:
            raise InvalidRequest("stop", "stop strings need a tokenizer, and this model has none; use stop_token_ids")
        tier = find_tier(request.service_tier, self.args.tiers, self.args.service_tiers)
        fields = request.options()
        if fields.get("seed") is None:
            fields["seed"] = secrets.randbits(SEED_BITS)
        if "on_deadline" not in fields:
            fields["on_deadline"] = tier.on_deadline
        return Job(
            request_id=request_id,
            prompt=prompt,
            options=request,
            fields=fields,
            tier=tier,
            tier_named=request.service_tier not in (None, "auto"),
            goal=goal_of(request, tier),
            arrived_s=arrived_s,
            output_tokens=output_tokens,
        )

    def plan(
        self, job: Job, loads: Sequence[ReplicaLoad], most_slots: float = math.inf, degrade: bool = False
    ) -> Planned | Refusal:
        """The plan of a job on replicas with these loads.

        `most_slots`: what a replica has room for, over the whole answer. `degrade`: the request was admitted before, so
        it is not refused.
        """
        scheduled = scheduled_plan(job.options, self.model.block_size)
        rungs: tuple[Rung, ...]
        if scheduled is not None:
            rungs = (self.quality.described(scheduled.first),)
        else:
            rungs = rungs_for(job.options, job.tier, job.tier_named, job.goal, self.quality, self.model.block_size)
        if most_slots < math.inf:
            rungs = tuple(rung for rung in rungs if total_slots(rung, job.output_tokens) <= most_slots)
            if not rungs:
                return self.refusal(job, loads)
        goal = Goal(job.goal.latency_slo_ms, job.goal.ttft_slo_ms, job.goal.stated, "degrade") if degrade else job.goal
        size = Size(len(job.prompt), job.output_tokens)
        elapsed_ms = (time.perf_counter() - job.arrived_s) * 1e3
        planned = make_plan(rungs, goal, size, loads, self.overhead_ms.value, elapsed_ms, self.idle_overhead_ms.value)
        if isinstance(planned, Planned) and scheduled is not None:
            return Planned(replace(planned.plan, schedule=scheduled.schedule), planned.replica)
        return planned

    def refusal(self, job: Job, loads: Sequence[ReplicaLoad]) -> Refusal:
        """What to say when replicas refused every plan: 429 under their load, with what would be accepted."""
        rungs = rungs_for(job.options, job.tier, job.tier_named, job.goal, self.quality, self.model.block_size)
        load = min(loads, key=lambda item: item.queue_s)
        size = Size(len(job.prompt), job.output_tokens)
        predictions = [predict(rung, size, load) for rung in rungs]
        if not job.goal.bounded:
            wait_s = max(1, math.ceil(load.queue_s))
            return Refusal(429, "the replicas' queues are full; try again later", None, wait_s, "model")
        extra_ms = self.overhead_ms.value
        answer = refuse(rungs, job.goal, size, load, predictions, extra_ms, extra_ms)
        longer_ms = REFUSAL_MARGIN * (job.goal.latency_slo_ms or 0)
        drained_ms = load.queue_s * 1e3 + min(predict(rung, size, load.idle()).p95_s for rung in rungs) * 1e3
        return replace(
            answer,
            status=429,
            message="admitting it now would make others late; try again later, or with a longer SLO",
            smallest_feasible_slo_ms=math.ceil(max(answer.smallest_feasible_slo_ms or 0, drained_ms, longer_ms)),
            retry_after_s=max(1, math.ceil(load.queue_s)),
        )

    def thinking_of(self, request: ApiRequest) -> ThinkingSplit | None:
        """What tells thinking from answer, for a chat that was asked to think."""
        if not isinstance(request, ChatCompletionRequest) or not request.template_options()[0]:
            return None
        close_id = None if self.tokenizer is None else self.tokenizer.think_close_id
        return None if self.tokenizer is None or close_id is None else ThinkingSplit(close_id, self.tokenizer.decode)

    def end_ids(self, options: GenerationOptions) -> set[int]:
        """Tokens that end an answer."""
        eos = set() if options.ignore_eos else set(self.model.eos_token_ids)
        return eos | set(options.stop_token_ids)

    def _prompt(self, request: ApiRequest) -> tuple[list[int], str]:
        """The prompt's ids, and the field that it came from."""
        if isinstance(request, ChatCompletionRequest):
            if self.tokenizer is None:
                raise InvalidRequest("messages", "messages: this model has no tokenizer; send token ids as a prompt")
            thinking, names = request.template_options()
            return self.tokenizer.render_chat(request.messages, thinking, **names), "messages"
        if not isinstance(request, CompletionRequest):
            raise TypeError(f"no prompt in a {type(request).__name__}")
        try:
            prompt = request.one_prompt()
        except ValueError as error:
            raise InvalidRequest("prompt", str(error)) from None
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InvalidRequest("prompt", "prompt: this model has no tokenizer; send token ids")
            return self.tokenizer.encode(prompt), "prompt"
        return prompt, "prompt"

    def _check_prompt(self, prompt: list[int], request: ApiRequest, field: str) -> None:
        if not prompt:
            raise InvalidRequest(field, f"{field} is empty; at least one token is needed")
        bad = next((token for token in prompt if not 0 <= token < self.model.vocab_size), None)
        if bad is not None:
            raise InvalidRequest(field, f"{field} has token id {bad}; allowed: 0 to {self.model.vocab_size - 1}")
        if len(prompt) >= self.context:
            raise InvalidRequest(
                field,
                f"{field} has {len(prompt)} tokens; allowed: at most {self.context - 1} (context {self.context})",
            )
        if request.max_tokens is not None and len(prompt) + request.max_tokens > self.context:
            raise InvalidRequest(
                "max_tokens",
                f"max_tokens is {request.max_tokens} after a prompt of {len(prompt)} tokens; allowed: at most "
                f"{self.context - len(prompt)} (the context is {self.context})",
            )


def apply_headers(request: GenerationOptions, headers: Mapping[str, str], output_tokens: int) -> None:
    """SLOs given as headers; fields of the body go first. Raises InvalidRequest naming the header.

    llm-d's time per output token becomes a total: time to first token + tokens * time per token.
    """
    latency, ttft = _milliseconds(headers, LATENCY_HEADER), _milliseconds(headers, TTFT_HEADER)
    llmd_ttft, tpot = _milliseconds(headers, LLMD_TTFT_HEADER), _milliseconds(headers, LLMD_TPOT_HEADER)
    first = ttft if ttft is not None else llmd_ttft
    if latency is None and tpot is not None:
        latency = (first or 0.0) + tpot * output_tokens
    if request.latency_slo_ms is None and latency is not None:
        request.latency_slo_ms = latency
    if request.ttft_slo_ms is None and first is not None:
        request.ttft_slo_ms = first


def _milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequest(name, f"{name} is {text!r}; allowed: a number above 0, in milliseconds")
    return value
