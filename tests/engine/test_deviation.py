"""By how much kinds of forwards deviate from the fit: learned beside the machine's speed, used between equal rungs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.batch import Segment
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.decoding.rung_choice import (
    AS_GOOD,
    WORTH_A_CHANGE,
    Crowd,
    TokensPerForward,
    ladder_of,
    most_valuable,
    preferred,
    worth_of,
)
from engine.deviation import MIXED, Deviations, kind_of
from engine.engine import Engine
from engine.plan import Decoding, Rung
from engine.postprocess import Work
from engine.request import GenerationOptions
from engine.segments import main_block_length
from engine.sequence import Phase

TRUTH = ForwardCost(base_s=2e-3, per_sequence_s=1e-5, per_token_s=7e-5, per_context_s=1e-6)
STEPS = {(16, 8): 1.06, (32, 8): 0.98, (16, 32): 0.95, (32, 32): 1.04}
"""By how much canvases of a length, in a crowd, take longer than `TRUTH` says."""


def run(model: ForwardCostModel, kinds: list[tuple[int, int]], count: int, speed: float = 1.0, seed: int = 0) -> None:
    """Forwards of these kinds in turn, with 3% noise, and single tokens among them."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        length, crowd = kinds[index % len(kinds)] if index % 3 else (1, int(rng.choice([1, 8, 32])))
        context = crowd * float(rng.uniform(50, 250))
        seconds = TRUTH.seconds(length * crowd, context, crowd) * STEPS.get((length, crowd), 1.0)
        model.observe(length * crowd, context, crowd, seconds * speed * rng.lognormal(0, 0.03), length)


def ratio(model: ForwardCostModel, crowd: int) -> float:
    """Predicted time of a full forward of canvases of 32 over one of 16, deviations in it."""
    long_s, short_s = (
        model.cost.seconds(length * crowd, 150 * crowd, crowd) * model.deviations.relative(length, crowd)
        for length in (32, 16)
    )
    return long_s / short_s


def true_ratio(crowd: int) -> float:
    long_s, short_s = (TRUTH.seconds(length * crowd, 150 * crowd, crowd) * STEPS[length, crowd] for length in (32, 16))
    return long_s / short_s


def test_what_the_fit_cannot_say_is_learned() -> None:
    model = ForwardCostModel()
    run(model, list(STEPS), 3000)
    for crowd in (8, 32):
        assert ratio(model, crowd) == pytest.approx(true_ratio(crowd), rel=0.025)


def test_a_kind_that_has_not_run_for_long_is_still_known_on_a_machine_that_got_slower() -> None:
    model = ForwardCostModel()
    run(model, list(STEPS), 3000)
    run(model, [(16, 8)], 5000, speed=1.5, seed=1)
    assert ratio(model, 8) == pytest.approx(true_ratio(8), rel=0.05)
    assert model.cost.seconds(128, 1200, 8) == pytest.approx(1.5 * TRUTH.seconds(128, 1200, 8) * 1.06, rel=0.06)


def test_nothing_seen_is_no_deviation_and_saved_is_kept() -> None:
    model = ForwardCostModel()
    assert model.deviations.relative(32, 8) == 1.0
    run(model, list(STEPS), 500)
    loaded = ForwardCostModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert [ratio(loaded, crowd) for crowd in (8, 32)] == pytest.approx([ratio(model, crowd) for crowd in (8, 32)])


@pytest.mark.parametrize(("sequences", "power"), [(0, 0), (1, 0), (3, 2), (5, 2), (6, 3), (31, 5), (256, 8)])
def test_crowds_are_told_apart_by_powers_of_two(sequences: int, power: int) -> None:
    assert kind_of(16, sequences) == (16, power)


def rung(length: int, tokens_per_forward: float) -> Rung:
    return Rung(Decoding.DIFFUSION, length, 1, None, "off", 0.9, tokens_per_forward)


PAIR = ladder_of((rung(16, 7.2), rung(32, 12.0)))


def test_of_rungs_that_the_fit_finds_equal_the_one_that_runs_faster_is_worth_more() -> None:
    crowd = Crowd(8, 150 * TRUTH.per_context_s)
    slow_long, slow_short = Deviations(), Deviations()
    for _ in range(300):
        for kind in (16, 32):
            slow_long.observe(kind_of(kind, 8), 1.08 if kind == 32 else 1.0)
            slow_short.observe(kind_of(kind, 8), 1.08 if kind == 16 else 1.0)
    chosen = [
        most_valuable(worth_of(PAIR, TRUTH, TokensPerForward(), 1e6, deviations, crowd), (0, 1), 4400.0)
        for deviations in (slow_long, slow_short)
    ]
    assert chosen == [0, 1]


@pytest.mark.parametrize("crowd", [1, 8, 64])
@pytest.mark.parametrize(("in_use", "most_lost"), [(None, AS_GOOD), (0, AS_GOOD), (1, WORTH_A_CHANGE)])
def test_longer_blocks_are_preferred_while_they_lose_little(crowd: int, in_use: int | None, most_lost: float) -> None:
    """Against throughputs worked out one by one, for blocks of 32 that are worth ever less: they need fewer forwards,
    and when they are in use they may lose more before that changes."""
    seen = set()
    for tokens in np.linspace(7.3, 16, 200):
        ladder = ladder_of((rung(16, 7.2), rung(32, float(tokens))))
        worth = worth_of(ladder, TRUTH, TokensPerForward(), 1e6)
        made = [
            crowd * gained / (TRUTH.base_s + crowd * own_s)
            for gained, own_s in zip(worth.gained, worth.own_s, strict=True)
        ]
        lost = 1 - made[1] / max(made)
        assert preferred(worth, (0, 1), max(made), in_use) == int(lost <= most_lost)
        seen.add(lost <= most_lost)
    assert seen == {True, False} or crowd == 1


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([(16, 16)], 16),
        ([(16, 16), (16, 16), (16, 16), (32, 16)], 16),
        ([(16, 16), (16, 16), (16, 16), (32, 17)], MIXED),
        ([(16, 16), (16, 16), (32, 32)], MIXED),
        ([(16, 16), (None, 5)], 16),
        ([(16, 16), (None, 6)], MIXED),
        ([(None, 20)], MIXED),
    ],
)
def test_a_forward_is_of_the_kind_of_three_quarters_of_it(
    golden_engine: Engine, parts: list[tuple[int | None, int]], kind: int
) -> None:
    """Parts: the block length, None for a prompt's chunk, and how many tokens of the forward it is."""
    work = []
    for length, tokens in parts:
        fields = {} if length is None else {"decoding": "diffusion", "block_length": length}
        one = golden_engine.intake.sequence("one", [5, 6], GenerationOptions(**fields), None, 0.0)
        segment = Segment([0] * tokens, 0, True, False, [], [1])
        work.append(Work(one, segment, Phase.PREFILL if length is None else Phase.LOOK))
    assert main_block_length(work, sum(tokens for _, tokens in parts)) == kind
