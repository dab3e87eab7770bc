"""What a request means here (tokens, tier, goal, seed, menu), and the plan that it gets. No Ray in here."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployments.bounds import check_decoding, check_slos, tier_for
from deployments.experience import Experience
from deployments.goal import goal_of
from deployments.job import Job
from deployments.menu import Menus
from deployments.openai_types import COMPLETION_MAX_TOKENS, ApiRequest, ChatCompletionRequest, CompletionRequest
from deployments.plan_answer import plan_answer
from deployments.planner import REFUSAL_MARGIN, Ask, Planned, Refusal, make_plan, predictions_at, smallest_feasible
from deployments.prefix_memory import PREFIXES, chain
from deployments.quality import read_quality_map
from deployments.reported_plan import rungs_used
from deployments.slo_headers import apply_headers
from deployments.tiers import capacity_share
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import InvalidRequest
from engine.request import scheduled_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deployments.history import Length
    from deployments.keys import ApiKey
    from deployments.load import ReplicaLoad
    from deployments.settings import AppArgs
    from engine.request import GenerationOptions

SEED_BITS = 48
"""Seeds that every JSON reader can hold exactly."""


class Planning:
    """One router's knowledge of model, tiers and history, and the decisions that rest on it."""

    def __init__(self, args: AppArgs) -> None:
        self.args = args
        self.model = ModelConfig.from_dir(args.model)
        self.tokenizer = Tokenizer.from_dir(args.model)
        self.quality = read_quality_map(args.model, self.model.block_size, args.quantization, args.calibration)
        self.menus = Menus(self.quality, self.model.block_size)
        self.experience = Experience(args.expected_output_tokens)

    @property
    def context(self) -> int:
        return self.model.max_position_embeddings

    def job(
        self,
        request: ApiRequest,
        headers: Mapping[str, str],
        request_id: str,
        arrived_s: float,
        key: ApiKey | None = None,
    ) -> Job:
        """Checks a request and says what it means. Raises InvalidRequest naming the field."""
        prompt, field = self._prompt(request)
        if isinstance(request, CompletionRequest) and request.max_tokens is None:
            request.max_tokens = min(COMPLETION_MAX_TOKENS, max(1, self.context - len(prompt)))
        self._check_prompt(prompt, request, field)
        args = self.args
        tier = tier_for(request.service_tier, args.tiers, args.service_tiers, key)
        (length,) = self._lengths(request, len(prompt), tier.name, [""])
        apply_headers(request, headers, length.reckoned)
        request.check(self.model.block_size, self.model.vocab_size)
        if request.stop and self.tokenizer is None:
            raise InvalidRequest("stop", "stop strings need a tokenizer, and this model has none; use stop_token_ids")
        check_slos(request, tier, key)
        check_decoding(request, tier)
        goal = goal_of(request, tier, length.reckoned, capacity_share(tier, args.tiers))
        tier_named = request.service_tier not in (None, "auto")
        menu = self.menus.menu(request, tier, tier_named, goal, key)
        fields = request.options()
        if fields.get("seed") is None:
            fields["seed"] = secrets.randbits(SEED_BITS)
        if "on_deadline" not in fields:
            fields["on_deadline"] = tier.on_deadline
        if key is not None:
            fields["cache_salt"] = key.salt(request.cache_salt)
        most_weight = tier.weight if key is None or key.max_weight is None else key.max_weight
        return Job(
            request_id=request_id,
            prompt=prompt,
            options=request,
            fields=fields,
            tier=tier,
            weight=min(tier.weight, most_weight),
            goal=goal,
            menu=menu,
            scheduled=scheduled_plan(request, self.model.block_size),
            arrived_s=arrived_s,
            length=length,
            page_keys=chain(prompt, fields.get("cache_salt"), self.model.block_size),
        )

    def ask(self, job: Job, degrade: bool = False) -> Ask:
        """What the planner needs of a job. `degrade`: the request was admitted before, so it is not refused."""
        menu = job.menu
        goal = replace(job.goal, on_infeasible="degrade") if degrade else job.goal
        prompt_tokens, page = len(job.prompt), self.model.block_size
        elapsed_ms = (time.perf_counter() - job.arrived_s) * 1e3
        overhead_ms, experience = self.experience.overhead_ms.value, self.experience.calibration
        return Ask(
            menu=menu,
            goal=goal,
            prompt_tokens=prompt_tokens,
            lengths=self._lengths(job.options, prompt_tokens, job.tier.name, menu.table.names),
            qualities=tuple(self.quality.expected_quality(rung, job.options.temperature) for rung in menu.rungs),
            extra_ms=overhead_ms + elapsed_ms,
            idle_extra_ms=min(self.experience.idle_overhead_ms.value, overhead_ms + elapsed_ms),
            elapsed_ms=elapsed_ms,
            cached={replica: page * pages for replica, pages in PREFIXES.cached_pages(job.page_keys).items()},
            scales={mode: experience.scale(job.tier.name, goal.bounded, mode) for mode in menu.table.modes},
            weight=job.weight,
        )

    def plan(self, job: Job, loads: Sequence[ReplicaLoad], degrade: bool = False) -> Planned | Refusal:
        """The plan of a job on replicas with these loads; `degrade` as in `ask`."""
        planned = make_plan(self.ask(job, degrade), loads)
        if isinstance(planned, Planned) and job.scheduled is not None:
            return replace(planned, plan=replace(planned.plan, schedule=job.scheduled.schedule))
        return planned

    def explained(self, job: Job, loads: Sequence[ReplicaLoad]) -> dict[str, Any]:
        """The body of `POST /v1/plan`: what the job could get and what it would get now."""
        return plan_answer(job, self.ask(job), self.plan(job, loads), loads)

    def refusal(self, job: Job, loads: Sequence[ReplicaLoad], earliest_ms: float | None) -> Refusal:
        """What to say when replicas refused the plan: 429 under their load, with what would be accepted.

        Args:
            earliest_ms: the shortest time in the engine that one of them offered; without one it is predicted.
        """
        wait_s = max(1, math.ceil(min(load.queue_s for load in loads)))
        goal = job.goal
        if not goal.bounded:
            return Refusal(429, "the replicas' queues are full; try again later", None, wait_s, "model")
        ask = self.ask(job)
        field = "ttft_slo_ms" if goal.latency_slo_ms is None else "latency_slo_ms"
        if earliest_ms is not None:
            smallest = (earliest_ms + ask.extra_ms) * REFUSAL_MARGIN
        else:
            field, smallest = smallest_feasible(ask, predictions_at(ask, loads)[0])
        asked_ms = goal.ttft_slo_ms if field == "ttft_slo_ms" else goal.latency_slo_ms
        offered_ms = math.ceil(max(smallest, REFUSAL_MARGIN * (asked_ms or 0.0)))
        message = (
            f"{field} is {asked_ms or 0:g}, which could not be kept beside what was admitted before; allowed now: at "
            f"least {offered_ms}, or try again later"
        )
        return Refusal(429, message, offered_ms, wait_s, field)

    def answer_quality(self, entries: Sequence[Mapping[str, object]], temperature: float) -> float | None:
        """Expected quality of an answer: the worst of the rungs that made its tokens; None where one is unknown.

        Not their mean: an answer is right as a whole, and a bound that holds for every part of it is what can be kept.

        Args:
            entries: of the report's `plan`.
        """
        qualities = [self.quality.expected_quality(rung, temperature) for rung in rungs_used(entries)]
        known = [quality for quality in qualities if quality is not None]
        return min(known) if known and len(known) == len(qualities) else None

    def _lengths(
        self, options: GenerationOptions, prompt_tokens: int, tier: str, rungs: Sequence[str]
    ) -> tuple[Length, ...]:
        """Output tokens to expect on each of the rungs, by their names."""
        most = options.max_tokens or self.context - prompt_tokens
        endless = options.ignore_eos and not options.stop and not options.stop_token_ids
        least = most if endless else options.min_tokens
        return self.experience.lengths.expect_each(prompt_tokens, most, tier, rungs, least)

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
