"""From a request to a sequence: every check that depends on the checkpoint, before a forward is spent."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.decoding.border import open_thinking
from engine.errors import InvalidRequest
from engine.events import Report
from engine.output import Output
from engine.plan import Plan, Rung
from engine.request import GenerationOptions, resolve_plan
from engine.sequence import Limits, Sampling, Sequence

if TYPE_CHECKING:
    from engine.checkpoint.config import ModelConfig
    from engine.checkpoint.tokenizer import Tokenizer
    from engine.config import EngineConfig

FAMILY_THINK_IDS = (12, 13)
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Intake:
    """Makes sequences. `capacity` is the most tokens one sequence may have: context, or the K/V memory if smaller."""

    model: ModelConfig
    config: EngineConfig
    tokenizer: Tokenizer | None
    ladder: tuple[Rung, ...]
    capacity: int

    def sequence(
        self, request_id: str, prompt: Seq[int], options: GenerationOptions, plan: Plan | None, now: float
    ) -> Sequence:
        """A checked sequence. Raises InvalidRequest naming the field.

        Args:
            prompt: token ids. plan: what a router decided; None = the request's own fields and the saved ladder.
            now: arrival on the engine's clock, seconds.
        """
        options.check(self.model.block_size, self.model.vocab_size)
        self._check_prompt(prompt, options)
        if options.stop and self.tokenizer is None:
            raise InvalidRequest(
                "stop", "stop strings need a tokenizer, which this checkpoint lacks; use stop_token_ids"
            )
        if plan is None:
            plan = resolve_plan(options, self.model.block_size, self.ladder)
        seed = options.seed if options.seed is not None else secrets.randbits(63)
        think_open, think_close = self._think_ids(options)
        limits = Limits(
            max_tokens=options.max_tokens or self.capacity - len(prompt),
            min_tokens=options.min_tokens,
            stop_ids=frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else self._eos),
            context=self.capacity,
            max_thinking_tokens=options.max_thinking_tokens,
            think_open=think_open,
            think_close=think_close,
        )
        slo_ms, first_slo_ms = options.latency_slo_ms, options.ttft_slo_ms
        sequence = Sequence(
            id=request_id,
            tokens=list(prompt),
            prompt_tokens=len(prompt),
            sampling=Sampling(options.temperature, options.top_k, options.top_p, seed),
            limits=limits,
            plan=plan,
            rung=plan.first,
            out=Output(self.tokenizer, options.stop, self.config.flush_tokens, self.config.flush_ms / 1e3),
            report=Report(seed=seed, prompt_tokens=len(prompt)),
            arrival_s=now,
            cache_salt=options.cache_salt,
            due_s=None if slo_ms is None else now + slo_ms / 1e3,
            first_due_s=None if first_slo_ms is None else now + first_slo_ms / 1e3,
            cut=slo_ms is not None and options.on_deadline == "cut",
            score=options.audit not in (None, "off") or any(rung.audit != "off" for rung in plan.rungs),
        )
        if open_thinking(sequence.tokens, limits.think_open, limits.think_close):
            sequence.thinking_from = 0
        return sequence

    @property
    def _eos(self) -> frozenset[int]:
        return frozenset(self.model.eos_token_ids)

    def _think_ids(self, options: GenerationOptions) -> tuple[int, int]:
        """Ids of the thinking markers; the family's where the checkpoint has no tokenizer (contract section 6)."""
        if self.tokenizer is None:
            return FAMILY_THINK_IDS
        opened, closed = self.tokenizer.think_open_id, self.tokenizer.think_close_id
        if opened is not None and closed is not None:
            return opened, closed
        if options.max_thinking_tokens is not None:
            raise InvalidRequest("max_thinking_tokens", "max_thinking_tokens: this model's vocabulary has no <think>")
        return NO_TOKEN, NO_TOKEN

    def _check_prompt(self, prompt: Seq[int], options: GenerationOptions) -> None:
        if not prompt:
            raise InvalidRequest("prompt", "prompt is empty; at least one token is needed")
        for token in prompt:
            if not 0 <= token < self.model.vocab_size:
                raise InvalidRequest(
                    "prompt", f"prompt has token id {token}; allowed: 0 to {self.model.vocab_size - 1}"
                )
        longest = self.capacity - 1
        if len(prompt) > longest:
            raise InvalidRequest(
                "prompt",
                f"prompt has {len(prompt)} tokens; allowed: at most {longest} (the context is {self.capacity})",
            )
        if options.max_tokens is not None and len(prompt) + options.max_tokens > self.capacity:
            raise InvalidRequest(
                "max_tokens",
                f"max_tokens is {options.max_tokens} after a prompt of {len(prompt)} tokens; allowed: at most "
                f"{self.capacity - len(prompt)} (the context is {self.capacity})",
            )
