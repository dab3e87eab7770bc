"""Changes of mode and block length at borders: nothing is lost or said twice, and a returned plan can be pinned."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.batch import ForwardBatch, Segment
from engine.engine import Engine
from engine.events import Delta
from engine.executor import Executor
from engine.plan import AR, Decoding, Plan, Rung, diffusion, self_speculation
from engine.request import GenerationOptions
from tests.engine.serving import PROMPTS, Answer, answer, ask, load

EXACT = [AR, self_speculation(32), self_speculation(5), self_speculation(8, 0.6), diffusion(9, 2, None, "exact")]
LOSSY = [diffusion(8, 2), diffusion(16, None, 0.7), diffusion(1), diffusion(16, 1, None, 0.3), diffusion(3, 3)]


@st.composite
def schedules(draw: st.DrawFn, rungs: Seq[Rung]) -> tuple[tuple[int, Rung], ...]:
    starts = sorted(draw(st.sets(st.integers(1, 45), max_size=5)))
    return tuple((start, draw(st.sampled_from(rungs))) for start in [0, *starts])


def follow(engine: Engine, prompt: list[int], schedule: tuple[tuple[int, Rung], ...], **fields: Any) -> Answer:
    plan = Plan(ladder=(schedule[0][1],), schedule=schedule)
    return answer(engine, [(prompt, {"max_tokens": 48, "ignore_eos": True, **fields})], plan)[0]


RELAXED = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(schedules(EXACT), st.sampled_from(PROMPTS[::2]), st.sampled_from([0, 0.8]))
@RELAXED
def test_whatever_the_changes_among_exact_rungs_the_tokens_are_those_of_ar(
    golden_engine: Engine, schedule: tuple[tuple[int, Rung], ...], prompt: list[int], temperature: float
) -> None:
    one = follow(golden_engine, prompt, schedule, temperature=temperature, seed=2)
    ar = ask(golden_engine, prompt, decoding="ar", max_tokens=48, ignore_eos=True, temperature=temperature, seed=2)
    assert one.token_ids == ar.token_ids


@given(schedules([*EXACT, *LOSSY]), st.sampled_from(PROMPTS[::2]), st.sampled_from([0, 0.8]))
@RELAXED
def test_the_returned_plan_gives_the_same_answer_again(
    golden_engine: Engine, schedule: tuple[tuple[int, Rung], ...], prompt: list[int], temperature: float
) -> None:
    first = follow(golden_engine, prompt, schedule, temperature=temperature, seed=4)
    entries = [entry.to_dict() for entry in first.report.plan]
    starts = [entry["from_token"] for entry in entries]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    sampling = {"temperature": temperature, "seed": 4, "max_tokens": 48, "ignore_eos": True}
    again = answer(golden_engine, [(prompt, {**sampling, "plan": entries})])[0]
    assert again.token_ids == first.token_ids
    assert [entry.to_dict() for entry in again.report.plan] == entries


def test_a_change_back_after_a_block_that_kept_one_token_can_be_replayed(golden_engine: Engine) -> None:
    schedule = ((0, AR), (5, diffusion(1)), (6, AR), (7, diffusion(1)), (8, self_speculation(8)))
    one = follow(golden_engine, PROMPTS[0], schedule, temperature=0)
    entries = [(entry.from_token, entry.rung.policy()) for entry in one.report.plan]
    assert entries == [(start, rung.policy()) for start, rung in schedule]
    assert one.token_ids == ask(golden_engine, PROMPTS[0], decoding="ar", max_tokens=48, ignore_eos=True).token_ids


class SimulatedTime:
    """A clock that a forward moves on by what a laptop needs: 4 ms, and 0.4 ms a token."""

    keeps_logits = True

    def __init__(self, executor: Executor) -> None:
        self.now = 0.0
        self.executor = executor
        self.tokens: list[int] = []

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def batch(self, segments: list[Segment]) -> ForwardBatch:
        return self.executor.batch(segments)

    def run(self, batch: ForwardBatch) -> Tensor:
        self.now += 4e-3 + 4e-4 * batch.query_tokens
        self.tokens.append(batch.query_tokens)
        return self.executor.run(batch)


SPECULATION = Rung(Decoding.SELF_SPECULATION, 16, 1, None, "exact", 0.99, 4.0)
LADDER = (Rung(Decoding.AR, expected_quality=0.99, expected_tokens_per_forward=1.0), SPECULATION)


def test_an_open_sequence_follows_the_load_and_comes_back() -> None:
    engine = load()
    core = engine.core
    timed = SimulatedTime(core.executor)
    core.clock, core.executor = timed, timed  # type: ignore[assignment]
    prompt = PROMPTS[0]
    options = GenerationOptions(max_tokens=160, temperature=0, ignore_eos=True)
    patient = engine.intake.sequence("patient", prompt, options, Plan(ladder=LADDER), core.clock())
    core.add(patient)
    tokens: list[int] = []

    def steps(count: int) -> None:
        for _ in range(count):
            for sequence, event in core.step():
                if sequence is patient and isinstance(event, Delta):
                    tokens.extend(event.token_ids)

    steps(8)
    crowd = GenerationOptions(max_tokens=20, temperature=0, ignore_eos=True, decoding="ar")
    for index in range(60):
        core.add(engine.intake.sequence(f"crowd-{index}", PROMPTS[index % len(PROMPTS)], crowd, None, core.clock()))
    while not core.idle:
        steps(1)
    used = [entry.rung.decoding for entry in patient.report.plan]
    # What comes after that follows what drafts were found to be worth meanwhile.
    assert used[:3] == [Decoding.SELF_SPECULATION, Decoding.AR, Decoding.SELF_SPECULATION]
    starts = [entry.from_token for entry in patient.report.plan]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    ar = ask(load(), prompt, decoding="ar", max_tokens=160, ignore_eos=True)
    assert tokens == ar.token_ids
    assert engine.stats().rung_changes == len(used) - 1


def test_a_crowd_of_open_sequences_steps_back_to_ar() -> None:
    engine = load()
    timed = SimulatedTime(engine.core.executor)
    engine.core.clock, engine.core.executor = timed, timed  # type: ignore[assignment]
    requests = [(prompt, {"max_tokens": 24, "temperature": 0, "ignore_eos": True}) for prompt in PROMPTS[:4] * 10]
    for one in answer(engine, requests, Plan(ladder=LADDER)):
        assert Decoding.AR in {entry.rung.decoding for entry in one.report.plan}
    alone = answer(engine, requests[:1], Plan(ladder=LADDER))[0]
    assert [entry.rung.decoding for entry in alone.report.plan] == [Decoding.SELF_SPECULATION]


def test_a_pinned_request_never_changes(golden_engine: Engine) -> None:
    one = ask(golden_engine, PROMPTS[0], decoding="diffusion", block_length=8, refinement_steps=2, max_tokens=40)
    assert [entry.to_dict() for entry in one.report.plan] == [
        {
            "from_token": 0,
            "decoding": "diffusion",
            "block_length": 8,
            "refinement_steps": 2,
            "threshold": None,
            "audit": "off",
        }
    ]


@pytest.mark.parametrize("max_tokens", [9, 17, 30])
def test_a_smaller_max_tokens_is_a_prefix_across_changes(golden_engine: Engine, max_tokens: int) -> None:
    schedule = ((0, self_speculation(6)), (7, diffusion(8, 2)), (20, AR), (25, diffusion(5, 1)))
    whole = follow(golden_engine, PROMPTS[3], schedule, temperature=0)
    short = follow(golden_engine, PROMPTS[3], schedule, temperature=0, max_tokens=max_tokens)
    assert short.token_ids == whole.token_ids[:max_tokens]
