"""Draft steps in a row on Triton kernels, interpreted: the answers of one step at a time, with fewer batches laid out.
Run by `test_steps_in_a_row.py` in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest

from engine import core
from engine.batch import ForwardBatch, Segment
from engine.decoding import canvas
from engine.decoding.choice import Choice
from engine.engine import Engine
from engine.executor import Executor
from kernels.switch import VARIABLE
from tests.engine.serving import PROMPTS, Answer, answer, load

BLOCK = {"decoding": "diffusion", "block_length": 4, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
"""A whole block and the token after it: nothing ends inside the block."""
FIXED: list[dict[str, Any]] = [
    BLOCK | {"refinement_steps": 3},
    BLOCK | {"threshold": None, "temperature": 0.9, "seed": 3},
]
AUDITED = BLOCK | {"refinement_steps": 2, "audit": "exact"}
THRESHOLD = BLOCK | {"refinement_steps": 3, "threshold": 0.9}
SPECULATION = {"decoding": "self_speculation", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
SPECULATIONS: list[dict[str, Any]] = [
    SPECULATION | {"block_length": 4},
    SPECULATION | {"block_length": 8, "temperature": 0.9, "seed": 3},
    SPECULATION | {"block_length": 4, "audit": 0.5, "ignore_eos": False},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "triton")
        return load(kv_tokens=2048, prefix_reuse=False)


def answers(
    engine: Engine, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Answer], int]:
    """The answers, and how many batches were laid out for them."""
    executor = engine.core.executor
    assert not executor.keeps_logits
    count = 0
    lay_out = type(executor).batch

    def counted(self: Any, segments: list[Segment]) -> ForwardBatch:
        nonlocal count
        count += 1
        return lay_out(self, segments)

    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "triton")
        patch.setattr(type(executor), "batch", counted)
        return answer(engine, list(zip(PROMPTS, requests, strict=False))), count


def one_at_a_time(
    engine: Engine, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Answer], int]:
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "MOST_IN_A_ROW", 1)
        patch.setattr(core, "drafts_end", lambda *_: False)
        return answers(engine, requests, monkeypatch)


def test_steps_in_a_row_give_the_same_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    want, looked = one_at_a_time(engine, FIXED, monkeypatch)
    got, seldom = answers(engine, FIXED, monkeypatch)
    assert [one.token_ids for one in got] == [one.token_ids for one in want]
    assert [one.report.forwards for one in got] == [one.report.forwards for one in want]
    assert [one.report.denoise_steps for one in got] == [one.report.denoise_steps for one in want] == [3, 3]
    assert seldom == looked - 2, "three steps were one look"


def test_audits_see_the_same_blocks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (want,), looked = one_at_a_time(engine, [AUDITED], monkeypatch)
    (got,), seldom = answers(engine, [AUDITED], monkeypatch)
    assert got.token_ids == want.token_ids
    assert seldom < looked == want.report.forwards


def test_what_the_host_has_to_see_is_looked_at_after_every_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,), count = answers(engine, [THRESHOLD], monkeypatch)
    assert count == one.report.forwards


def test_nobody_waits_for_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    engine = load(kv_tokens=2048, max_sequences=1)
    got, count = answers(engine, [FIXED[0], FIXED[0]], monkeypatch)
    assert count == sum(one.report.forwards for one in got) - 2, "only the last one, whom nobody waits behind"


def looks_of(
    engine: Engine, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Answer], int]:
    """The answers, and for how many looks the host had not seen the drafts."""
    count = 0
    look = Executor.look

    def counted(self: Any, *args: Any) -> Choice:
        nonlocal count
        count += 1
        return look(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "look", counted)
        return answers(engine, requests, patch)[0], count


def test_looks_that_follow_drafts_give_the_same_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    want, _ = one_at_a_time(engine, SPECULATIONS, monkeypatch)
    got, looks = looks_of(engine, SPECULATIONS, monkeypatch)
    assert looks >= max(one.report.blocks for one in got) > 1
    for one, other in zip(got, want, strict=True):
        assert one.token_ids == other.token_ids
        assert one.report.forwards == other.report.forwards
        assert one.report.draft_steps == other.report.draft_steps
        assert one.report.blocks == other.report.blocks
        assert one.report.audit_logprob == pytest.approx(other.report.audit_logprob)


def test_nothing_takes_longer_than_the_next_deadline_may_wait_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.core, "_last_deadline_s", engine.core.clock())
    monkeypatch.setattr(core, "LONGEST_BASES", 0.5)
    (one,), looks = looks_of(engine, SPECULATIONS[:1], monkeypatch)
    assert looks == 0
    assert one.report.forwards > 2
