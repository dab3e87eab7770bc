"""Little K/V memory: everybody finishes, nothing leaks, and the answers stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from engine.engine import Engine
from tests.engine.serving import MODES, PROMPTS, Answer, answer, load

NAMES = ("ar", "self-speculation", "diffusion-threshold", "diffusion-budget", "diffusion-exact", "diffusion-score")
SHORT = PROMPTS[:10]
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (
        SHORT[index % len(SHORT)],
        {**MODES[NAMES[index % len(NAMES)]], "temperature": 0, "max_tokens": 70, "ignore_eos": True},
    )
    for index in range(18)
]


@pytest.fixture(scope="module")
def roomy() -> list[Answer]:
    return answer(load(prefix_reuse=False), REQUESTS)


@pytest.mark.parametrize("kv_tokens", [128, 320, 640])
def test_all_finish_with_their_answers_when_pages_run_out(roomy: list[Answer], kv_tokens: int) -> None:
    engine = load(kv_tokens=kv_tokens, prefix_reuse=False)
    answers = answer(engine, REQUESTS)
    assert [one.token_ids for one in answers] == [one.token_ids for one in roomy]
    stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.preemptions == sum(one.report.preemptions for one in answers)
    assert (stats.waiting, stats.running, stats.pages_in_use) == (0, 0, 0)
    assert stats.pages_total == kv_tokens // 32


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_reuse": True},
        {"prefill_chunk": 5},
        {"max_sequences": 3},
        {"max_forward_tokens": 128},
        {"kv_tokens": 320, "prefix_reuse": True, "prefill_chunk": 9, "max_sequences": 7},
    ],
    ids=str,
)
def test_settings_of_the_engine_change_no_answer(roomy: list[Answer], settings: dict[str, Any]) -> None:
    engine = load(**settings)
    # The second time there are prefixes to reuse.
    for _ in range(2):
        assert [one.token_ids for one in answer(engine, REQUESTS)] == [one.token_ids for one in roomy]
    stats = engine.stats()
    # Golden prompts are shorter than a page; a page of the text that was preempted may be found again.
    if not engine.config.prefix_reuse:
        assert stats.prefix_hit_tokens == 0


LONG = [1, *(14 + (7 * place) % 80 for place in range(199))]


def test_a_prefix_is_read_once_and_only_within_its_salt() -> None:
    engine = load(max_forward_tokens=256)
    fields = {"decoding": "ar", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    first = answer(engine, [(LONG, fields)])[0]
    assert first.report.cached_prompt_tokens == 0
    again = answer(engine, [(LONG, fields)])[0]
    assert again.report.cached_prompt_tokens == 192
    assert again.token_ids == first.token_ids
    longer = answer(engine, [([*LONG[:150], 20, 21], fields)])[0]
    assert longer.report.cached_prompt_tokens == 128
    salted = answer(engine, [(LONG, {**fields, "cache_salt": "mine"})])[0]
    assert salted.report.cached_prompt_tokens == 0
    assert salted.token_ids == first.token_ids
    assert answer(engine, [(LONG, {**fields, "cache_salt": "mine"})])[0].report.cached_prompt_tokens == 192
    assert engine.stats().prefix_hit_tokens == 192 + 128 + 192


def test_the_output_of_every_mode_can_be_a_prefix() -> None:
    for name in ("ar", "self-speculation", "diffusion-budget", "diffusion-tolerance"):
        engine, cold = load(), load(prefix_reuse=False)
        fields = {**MODES[name], "temperature": 0, "max_tokens": 90, "ignore_eos": True}
        first = answer(engine, [(PROMPTS[0], fields)])[0]
        turn = [*PROMPTS[0], *first.token_ids, 60, 61]
        following = answer(engine, [(turn, fields)])[0]
        assert following.report.cached_prompt_tokens >= 64
        assert following.token_ids == answer(cold, [(turn, fields)])[0].token_ids


def test_a_request_larger_than_the_memory_is_refused_before_it_waits() -> None:
    from engine.errors import InvalidRequest
    from engine.request import GenerationOptions

    engine: Engine = load(kv_tokens=64)
    with pytest.raises(InvalidRequest, match="at most 54"):
        engine.intake.sequence("x", [1] * 10, GenerationOptions(max_tokens=55), None, 0.0)
