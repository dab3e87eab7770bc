"""A ladder, its menus, and requests and loads drawn at random: what tests of the planner share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from deployments.goal import Goal, goal_of
from deployments.history import Length
from deployments.load import ReplicaLoad
from deployments.menu import Menu, Menus
from deployments.planner import Ask, Planned, Refusal, make_plan
from deployments.quality import QualityMap
from deployments.tiers import TIERS, Tier
from engine.cost_model import ForwardCost
from engine.plan import Decoding, Rung, diffusion, self_speculation
from engine.request import GenerationOptions

BLOCK = 32


def measured(rung: Rung, quality: float, tokens_per_forward: float) -> Rung:
    return replace(rung, expected_quality=quality, expected_tokens_per_forward=tokens_per_forward)


LADDER = (
    measured(Rung(Decoding.AR), 0.95, 1.0),
    measured(self_speculation(8), 0.95, 2.5),
    measured(diffusion(32, 16), 0.93, 1.9),
    measured(diffusion(32, 8), 0.90, 3.5),
    measured(diffusion(32, 4), 0.80, 6.4),
    measured(diffusion(32, 1), 0.30, 16.0),
)
QUALITY = QualityMap(LADDER, tuple(rung for rung in LADDER if rung.is_diffusion), 0.0, {r.policy(): r for r in LADDER})
MENUS = Menus(QUALITY, BLOCK)
DEFAULT = TIERS[0]
COST = ForwardCost(base_s=5e-3, per_sequence_s=0.0, per_token_s=1e-4, per_context_s=0.0)


def exactly(tokens: int) -> Length:
    return Length(tokens, tokens, "known")


def ask(menu: Menu, goal: Goal, prompt: int, length: Length, overhead_ms: float = 20.0, **rest: Any) -> Ask:
    qualities = tuple(rung.expected_quality for rung in menu.rungs)
    return Ask(menu, goal, prompt, (length,) * len(menu.rungs), qualities, overhead_ms, overhead_ms, **rest)


def plan(
    slo_ms: float | None,
    loads: ReplicaLoad | list[ReplicaLoad],
    output: int | Length = 100,
    tier: Tier = DEFAULT,
    share: float = 1.0,
    **fields: Any,
) -> Planned | Refusal:
    options = GenerationOptions(latency_slo_ms=slo_ms, **fields)
    goal = goal_of(options, tier, share=share)
    menu = MENUS.menu(options, tier, tier is not DEFAULT, goal)
    length = exactly(output) if isinstance(output, int) else output
    return make_plan(ask(menu, goal, 50, length), loads if isinstance(loads, list) else [loads])


def quality(planned: Planned) -> float:
    value = planned.plan.first.expected_quality
    assert value is not None
    return value


costs = st.builds(
    ForwardCost,
    base_s=st.floats(1e-4, 0.02),
    per_sequence_s=st.floats(0, 1e-4),
    per_token_s=st.floats(0, 1e-3),
    per_context_s=st.floats(0, 1e-6),
)


def loads_of(name: str) -> st.SearchStrategy[ReplicaLoad]:
    return st.builds(
        ReplicaLoad,
        replica=st.just(name),
        queue_s=st.floats(0, 20),
        running=st.integers(0, 64),
        waiting=st.integers(0, 8),
        sequences=st.integers(0, 64),
        slots=st.floats(0, 500),
        context=st.floats(0, 20_000),
        cost=costs,
        tail_ratio=st.floats(1, 5),
        timed_s=st.floats(0, 20),
        timed_share=st.floats(0, 1),
    )


loads = loads_of("a")
clusters = st.integers(1, 3).flatmap(lambda count: st.tuples(*(loads_of(name) for name in "abc"[:count])).map(list))
lengths = st.tuples(st.integers(1, 256), st.integers(0, 200)).map(lambda pair: Length(pair[0], sum(pair), "seen"))
fields = st.fixed_dictionaries(
    {},
    optional={
        "decoding": st.sampled_from(["auto", "diffusion"]),
        "max_refinement_steps": st.integers(4, 32),
        "min_refinement_steps": st.integers(1, 4),
        "min_expected_quality": st.sampled_from([0.3, 0.5, 0.8]),
    },
)
shares = st.floats(0.5, 1.0)
