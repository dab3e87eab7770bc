"""The engine's loop without a model: a clock that only forwards move, and logits that are drawn.

Everything above the executor is the real thing (scheduler, rungs, pages, decoding); a forward takes exactly what a
`ForwardCost` says, so that what scheduling does to deadlines can be asserted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import Tensor

from engine.admission import Newcomer
from engine.batch import ForwardBatch, Segment, build_batch
from engine.checkpoint.config import ModelConfig
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.events import Finished
from engine.intake import Intake
from engine.kv_cache import PagePool
from engine.model.linear import ProductRows
from engine.picture import Picture
from engine.plan import Plan
from engine.request import GenerationOptions
from engine.sequence import Sequence
from tests.oracle.random_model import raw_config

PAGE = 32
VOCABULARY = 160
LAPTOP = ForwardCost(base_s=2.5e-3, per_sequence_s=2.5e-4, per_token_s=1e-4, per_context_s=1e-7)


class VirtualExecutor:
    """Draws logits: a draft and AR agree on a token with probability `agreement`."""

    keeps_logits = True

    def __init__(self, cost: ForwardCost, agreement: float, seed: int) -> None:
        self.cost = cost
        self.agreement = agreement
        self.rng = Random(seed)
        self.now = 0.0
        self.durations: list[float] = []

    def batch(self, segments: list[Segment]) -> ForwardBatch:
        self.sequences = len(segments)
        return build_batch(segments, PAGE, 2, 1, torch.float32, products=ProductRows(1))

    def run(self, batch: ForwardBatch) -> Tensor:
        seconds = self.cost.seconds(batch.query_tokens, batch.context_tokens, self.sequences)
        self.durations.append(seconds)
        self.now += seconds
        logits = torch.zeros(batch.wanted, VOCABULARY)
        for row in range(batch.wanted):
            logits[row, 101 if self.rng.random() < self.agreement else self.rng.randrange(102, 150)] = 6.0
        return logits


@dataclass
class VirtualRequest:
    """A request at a time, and what became of it."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    plan: Plan
    slo_s: float | None = None
    first_slo_s: float | None = None
    name: str = ""
    refused: bool = False
    sequence: Sequence | None = None
    ended_s: float | None = None
    first_s: float | None = None

    @property
    def latency_s(self) -> float:
        assert self.ended_s is not None, "it never ended"
        return self.ended_s - self.at_s

    @property
    def in_time(self) -> bool:
        return self.slo_s is None or (self.ended_s is not None and self.latency_s <= self.slo_s)


@dataclass
class VirtualEngine:
    """Runs requests that arrive at given times through an `EngineCore`."""

    cost: ForwardCost = LAPTOP
    agreement: float = 0.9
    seed: int = 0
    kv_tokens: int = 65_536
    admission: bool = False
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_sequences=512))

    def __post_init__(self) -> None:
        self.executor = VirtualExecutor(self.cost, self.agreement, self.seed)
        self.pool = PagePool(self.kv_tokens // PAGE + 1, PAGE, False)
        self.core = EngineCore(
            self.executor,  # type: ignore[arg-type]
            self.pool,
            ForwardCostModel(prior=self.cost),
            self.config,
            mask_token_id=100,
            clock=lambda: self.executor.now,
        )
        self.picture = Picture(self.core)
        model = ModelConfig.from_dict(raw_config())
        self.intake = Intake(model, self.config, None, (), self.kv_tokens)

    def run(self, requests: list[VirtualRequest]) -> None:
        """Serves them all; each request's times are filled in."""
        arriving = sorted(requests, key=lambda request: request.at_s)
        by_sequence: dict[Sequence, VirtualRequest] = {}
        rng = Random(self.seed)
        while arriving or not self.core.idle:
            if self.core.idle and arriving[0].at_s > self.executor.now:
                self.executor.now = arriving[0].at_s
            while arriving and arriving[0].at_s <= self.executor.now:
                request = arriving.pop(0)
                if self.admission and request.slo_s is not None:
                    if not self._admits(request):
                        request.refused = True
                        continue
                    promised_ms = request.slo_s * 1e3
                    request.plan = replace(request.plan, slo_ms=promised_ms, predicted_p95_ms=promised_ms)
                sequence = self._sequence(request, rng)
                by_sequence[sequence] = request
                self.core.add(sequence)
            for sequence, event in self.core.step():
                request = by_sequence[sequence]
                if request.first_s is None:
                    request.first_s = self.executor.now - request.at_s
                if isinstance(event, Finished):
                    request.ended_s = self.executor.now

    def _admits(self, request: VirtualRequest) -> bool:
        """The replica's last word."""
        late_s = self.executor.now - request.at_s
        newcomer = Newcomer(
            request.plan,
            request.prompt_tokens,
            request.plan.expected_tokens or request.output_tokens,
            None if request.slo_s is None else request.slo_s - late_s,
            None if request.first_slo_s is None else request.first_slo_s - late_s,
        )
        return self.picture.rung_for(newcomer) is not None

    def _sequence(self, request: VirtualRequest, rng: Random) -> Sequence:
        options = GenerationOptions(
            max_tokens=request.output_tokens,
            temperature=0,
            ignore_eos=True,
            latency_slo_ms=None if request.slo_s is None else request.slo_s * 1e3,
            ttft_slo_ms=None if request.first_slo_s is None else request.first_slo_s * 1e3,
        )
        prompt = [rng.randrange(101, VOCABULARY) for _ in range(request.prompt_tokens)]
        sequence = self.intake.sequence(request.name or "r", prompt, options, request.plan, request.at_s)
        request.sequence = sequence
        return sequence
