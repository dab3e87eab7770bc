"""Forwards in a row on Triton kernels, interpreted: the answers of one at a time, which the host sees less often.
Run by `test_in_a_row.py` in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import core, in_a_row, packing
from engine.batch import ForwardBatch, Segment
from engine.cost_model import ForwardCostModel
from engine.decoding import canvas
from engine.decoding.choice import Choice
from engine.engine import Engine
from engine.executor import Executor
from engine.group.leader import Group
from engine.group.wire import Kind
from kernels.switch import VARIABLE
from tests.engine.serving import PROMPTS, Answer, answer, last_layer_of_golden, load

BLOCK = {"decoding": "diffusion", "block_length": 4, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
"""A whole block and the token after it: nothing ends inside the block."""
FIXED: list[dict[str, Any]] = [
    BLOCK | {"refinement_steps": 3},
    BLOCK | {"threshold": None, "temperature": 0.9, "seed": 3},
]
AUDITED = BLOCK | {"refinement_steps": 2, "audit": "exact"}
THRESHOLD = BLOCK | {"refinement_steps": 3, "threshold": 0.9}
UNCERTAIN: list[list[dict[str, Any]]] = [
    [THRESHOLD],
    [BLOCK | {"block_length": 8, "threshold": 0.9, "max_tokens": 14, "ignore_eos": False, "min_tokens": 6}],
    [THRESHOLD | {"temperature": 0.9, "seed": 3, "refinement_steps": 4}, THRESHOLD],
    [BLOCK | {"block_length": 8, "max_tokens": 12, "threshold": None, "entropy_bound": 0.5}],
    [BLOCK | {"block_length": 8, "max_tokens": 9, "threshold": None}],
    [THRESHOLD | {"audit": 0.5, "max_tokens": 7}],
]
SPECULATION = {"decoding": "self_speculation", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
SPECULATIONS: list[dict[str, Any]] = [
    SPECULATION | {"block_length": 4},
    SPECULATION | {"block_length": 8, "temperature": 0.9, "seed": 3},
    SPECULATION | {"block_length": 4, "audit": 0.5, "ignore_eos": False},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return last_layer_of_golden(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "triton")
        return load(checkpoint, kv_tokens=2048, prefix_reuse=False)


def answers(
    engine: Engine,
    requests: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[int]] = PROMPTS,
) -> tuple[list[Answer], int]:
    """The answers, and how many batches were laid out for them."""
    executor = engine.core.executor
    assert not executor.keeps_logits
    count = 0
    lay_out = type(executor)._laid_out

    def counted(self: Any, segments: list[Segment], kind: Kind) -> ForwardBatch:
        nonlocal count
        count += 1
        return lay_out(self, segments, kind)

    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "triton")
        patch.setattr(type(executor), "_laid_out", counted)
        return answer(engine, list(zip(prompts, requests, strict=False))), count


def one_at_a_time(
    engine: Engine, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Answer], int]:
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "MOST_IN_A_ROW", 1)
        patch.setattr(in_a_row, "drafts_end", lambda *_: False)
        patch.setattr(in_a_row, "steps_without_host", lambda *_: 1)
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


def fetches(
    engine: Engine, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Answer], int, int]:
    """The answers, how many batches were laid out for them, and how often the host waited for the device."""
    count = 0
    fetch = packing.fetched

    def counted(tensors: Any) -> Any:
        nonlocal count
        count += 1
        return fetch(tensors)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "fetched", counted)
        got, laid_out = answers(engine, requests, patch)
    return got, laid_out, count


@pytest.mark.parametrize("which", range(len(UNCERTAIN)))
def test_what_the_host_has_to_see_is_the_same_batch_until_a_canvas_is_done(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    requests = UNCERTAIN[which]
    want, often = one_at_a_time(engine, requests, monkeypatch)
    got, seldom, waits = fetches(engine, requests, monkeypatch)
    for one, other in zip(got, want, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert one.report.forwards == other.report.forwards
        assert one.report.denoise_steps == other.report.denoise_steps
        assert one.report.blocks == other.report.blocks
    if got[0].report.plan[0].rung.known_steps:
        assert waits < got[0].report.forwards / 2
    else:
        assert waits >= max(one.report.forwards for one in got) - 1, "it is looked at after every step"
    assert seldom < often
    assert engine.core.pool.in_use() == 0


def test_a_stop_inside_a_canvas_ends_its_row(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = THRESHOLD | {"block_length": 8, "max_tokens": 9, "refinement_steps": 8}
    (whole,), _ = answers(engine, [request], monkeypatch)
    for place in (2, 5):
        stopped = request | {"stop_token_ids": [whole.token_ids[place]]}
        (want,), _ = one_at_a_time(engine, [stopped], monkeypatch)
        (got,), _ = answers(engine, [stopped], monkeypatch)
        assert got.token_ids == want.token_ids
        assert got.finish_reason == want.finish_reason == "stop"
        assert got.report.forwards == want.report.forwards < whole.report.forwards
    assert engine.core.pool.in_use() == 0


def test_a_row_ends_where_a_canvas_does(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that commits a token in every step, and beside it one that is done by its second."""
    slow, fast = BLOCK | {"threshold": 1.0}, BLOCK | {"refinement_steps": 2, "threshold": 1.0}
    assert slow["block_length"] == 4
    want, _ = one_at_a_time(engine, [slow, fast], monkeypatch)
    got, laid_out = answers(engine, [slow, fast], monkeypatch)
    assert [one.token_ids for one in got] == [one.token_ids for one in want]
    assert [one.report.denoise_steps for one in got] == [3, 2]
    # The prompts, two steps of both, the last one of one beside the other's look, and the look at that.
    assert laid_out == 4


def test_a_row_ends_where_somebody_comes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.core, "called", lambda: True)
    (one,), count = answers(engine, [THRESHOLD], monkeypatch)
    assert one.report.denoise_steps > 1
    assert count == one.report.forwards


def test_what_a_row_has_cost_is_learned_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []
    forwards: list[int] = []
    observe, step = ForwardCostModel.observe, core.EngineCore.step

    def observed(self: Any, *size: Any) -> None:
        seconds.append(size[3])
        observe(self, *size)

    def stepped(self: Any) -> Any:
        before = self.counters.forwards
        events = step(self)
        forwards.append(self.counters.forwards - before)
        return events

    monkeypatch.setattr(ForwardCostModel, "observe", observed)
    monkeypatch.setattr(core.EngineCore, "step", stepped)
    busy_s = engine.core.counters.busy_s
    (one,), _ = answers(engine, [THRESHOLD], monkeypatch)
    assert len(seconds) == len(forwards), "none is lost, and none learned twice"
    assert sum(forwards) == one.report.forwards
    assert max(forwards) > 1
    spent = [each * count for each, count in zip(seconds, forwards, strict=True)]
    assert sum(spent) == pytest.approx(engine.core.counters.busy_s - busy_s)


def test_remask_is_laid_out_step_by_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,), count = answers(engine, [THRESHOLD | {"remask": 0.1}], monkeypatch)
    assert one.report.denoise_steps > 1
    assert count == one.report.forwards


def test_nobody_waits_for_steps_in_a_row(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    engine = load(checkpoint, kv_tokens=2048, max_sequences=1)
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


AR = {"decoding": "ar", "max_tokens": 10, "temperature": 0, "ignore_eos": True}
ARS: list[dict[str, Any]] = [
    AR,
    AR | {"temperature": 0.9, "seed": 3, "max_tokens": 7},
    AR | {"audit": "score", "ignore_eos": False, "min_tokens": 6},
]


def seen(
    engine: Engine,
    requests: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[int]] = PROMPTS,
) -> tuple[list[Answer], int]:
    """The answers, and how often the host saw what forwards chose before it began another."""
    count = 0
    step = core.EngineCore.step

    def counted(self: Any) -> Any:
        nonlocal count
        count += 1
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(core.EngineCore, "step", counted)
        return answers(engine, requests, patch, prompts)[0], count


def nearly_a_page(engine: Engine) -> list[list[int]]:
    """Two prompts that four tokens are missing to fill a page."""
    size = engine.core.pool.page_size - 4
    return [[*prompt, *range(20, 20 + size - len(prompt))] for prompt in PROMPTS[:2]]


def test_tokens_in_a_row_give_the_same_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "MOST_IN_A_ROW", 1)
        want, often = seen(engine, ARS, patch)
    got, seldom = seen(engine, ARS, monkeypatch)
    assert seldom < often / 2
    for one, other in zip(got, want, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.report.blocks == other.report.blocks
        assert one.report.audit_logprob == pytest.approx(other.report.audit_logprob)
    assert got[0].report.forwards == want[0].report.forwards == 10
    assert got[2].report.audit_logprob is not None


def test_what_comes_after_a_stop_is_no_part_of_the_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,), _ = seen(engine, ARS[1:2], monkeypatch)
    for place in (1, 2, 3):
        stop = whole.token_ids[place]
        (one,), _ = seen(engine, [ARS[1] | {"stop_token_ids": [stop]}], monkeypatch)
        first = whole.token_ids.index(stop)
        assert one.token_ids == whole.token_ids[: first + 1]
        assert one.finish_reason == "stop"
    assert engine.core.pool.in_use() == 0


def test_tokens_in_a_row_cross_pages(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = nearly_a_page(engine)
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "MOST_IN_A_ROW", 1)
        (want,), _ = seen(engine, [AR], patch, prompts)
    (got,), _ = seen(engine, [AR], monkeypatch, prompts)
    assert got.token_ids == want.token_ids
    assert engine.core.pool.in_use() == 0


def test_where_pages_are_few_nobody_takes_them_ahead(
    checkpoint: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers that need two pages each, and three pages: one of them has to wait."""
    size = engine.core.pool.page_size
    requests, prompts = [AR] * 2, nearly_a_page(engine)
    monkeypatch.setenv(VARIABLE, "triton")
    small = load(checkpoint, kv_tokens=3 * size, prefix_reuse=False)
    want, _ = seen(engine, requests, monkeypatch, prompts)
    got, _ = seen(small, requests, monkeypatch, prompts)
    assert [one.token_ids for one in got] == [one.token_ids for one in want]
    assert small.core.counters.forwards > max(one.report.forwards for one in want)


def test_two_ranks_go_on_together(checkpoint: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of every kind, alone and several at once: the answers of one rank, and workers hear only what they need."""
    said: list[Kind] = []
    tell = Group.tell

    def heard(self: Group, kind: Kind, payload: bytes | memoryview = b"") -> None:
        said.append(kind)
        tell(self, kind, payload)

    rows = [
        ([one | {"audit": "score"} for one in requests], kind)
        for requests, kind in (
            (FIXED[:1], Kind.AGAIN),
            (UNCERTAIN[2], Kind.AGAIN),
            (SPECULATIONS[1:2], Kind.LOOK),
            (ARS[1:2], Kind.LOOK),
        )
    ]
    wanted = [answers(engine, requests, monkeypatch)[0] for requests, _ in rows]
    half = engine.model_config.vocab_size // 2
    for want in wanted[1:]:
        assert {token < half for one in want for token in one.token_ids} == {True, False}, "of both ranks' parts"
    monkeypatch.setattr(Group, "tell", heard)
    monkeypatch.setenv(VARIABLE, "triton")
    two = load(checkpoint, kv_tokens=2048, prefix_reuse=False, tp=2)
    try:
        for (requests, kind), want in zip(rows, wanted, strict=True):
            said.clear()
            got, laid_out = answers(two, requests, monkeypatch)
            for one, other in zip(got, want, strict=True):
                assert one.token_ids == other.token_ids
                assert one.report.forwards == other.report.forwards
                assert one.report.audit_logprob == pytest.approx(other.report.audit_logprob, abs=1e-4)
            assert kind in said
            assert said.count(Kind.ASK) == said.count(Kind.STEP) + said.count(Kind.LOOK) == laid_out
            assert said.count(Kind.STEP) < max(one.report.forwards for one in got)
    finally:
        two.close()
