"""Where an answer ends: max_tokens, min_tokens, EOS and stop ids, in every mode."""

from __future__ import annotations

from typing import Any

import pytest

from engine.engine import Engine
from tests.engine.serving import MODES, PROMPTS, Answer, answer, ask

EOS = 11
SOME = PROMPTS[::4]
FEW = ("ar", "self-speculation", "diffusion-threshold", "diffusion-budget", "diffusion-tolerance")


def both(engine: Engine, mode: str, **fields: Any) -> list[tuple[list[int], Answer]]:
    """Answers of a mode at temperature 0 and 0.9, pinned seeds."""
    asked = [
        (prompt, {**MODES[mode], "temperature": temperature, "seed": seed, **fields})
        for seed, prompt in enumerate(SOME)
        for temperature in (0, 0.9)
    ]
    return [(prompt, one) for (prompt, _), one in zip(asked, answer(engine, asked), strict=True)]


@pytest.mark.parametrize("mode", MODES)
def test_a_smaller_max_tokens_gives_a_prefix(golden_engine: Engine, mode: str) -> None:
    sizes = (1, 2, 7, 12, 13, 31, 45)
    asked = [
        (prompt, {**MODES[mode], "temperature": temperature, "seed": 6, "max_tokens": size})
        for prompt in SOME
        for temperature in (0, 0.9)
        for size in sizes
    ]
    answers = answer(golden_engine, asked)
    for first in range(0, len(asked), len(sizes)):
        long = answers[first + len(sizes) - 1]
        for size, short in zip(sizes, answers[first : first + len(sizes)], strict=True):
            assert short.token_ids == long.token_ids[:size]
            assert short.finish_reason == ("stop" if short.token_ids[-1] == EOS else "length")


@pytest.mark.parametrize("mode", FEW)
def test_an_answer_ends_with_its_first_eos_and_counts_it(golden_engine: Engine, mode: str) -> None:
    ended = 0
    for _, one in both(golden_engine, mode, max_tokens=90):
        assert EOS not in one.token_ids[:-1]
        assert (one.finish_reason == "stop") == (one.token_ids[-1] == EOS)
        assert one.report.completion_tokens == len(one.token_ids)
        ended += one.finish_reason == "stop"
    assert ended > 0


@pytest.mark.parametrize("mode", FEW)
def test_min_tokens_bans_eos_and_stop_ids(golden_engine: Engine, mode: str) -> None:
    plain = both(golden_engine, mode, max_tokens=90)
    least = max(len(one.token_ids) for _, one in plain if one.finish_reason == "stop") + 5
    stops = [60, 61]
    for _, one in both(golden_engine, mode, max_tokens=least + 30, min_tokens=least, stop_token_ids=stops):
        assert len(one.token_ids) > least
        assert not {EOS, *stops} & set(one.token_ids[:least])
        if one.finish_reason == "stop":
            assert one.token_ids[-1] in {EOS, *stops}


@pytest.mark.parametrize("mode", FEW)
def test_ignore_eos_goes_on_to_max_tokens(golden_engine: Engine, mode: str) -> None:
    plain = both(golden_engine, mode, max_tokens=100)
    for (_, one), (_, other) in zip(both(golden_engine, mode, max_tokens=100, ignore_eos=True), plain, strict=True):
        assert len(one.token_ids) == 100
        assert one.finish_reason == "length"
        if mode in ("ar", "self-speculation"):
            assert one.token_ids[: len(other.token_ids)] == other.token_ids
    assert any(other.finish_reason == "stop" for _, other in plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_id_ends_the_answer_wherever_it_stands(golden_engine: Engine, mode: str) -> None:
    for prompt in SOME:
        fields = {**MODES[mode], "temperature": 0, "max_tokens": 40, "ignore_eos": True}
        whole = answer(golden_engine, [(prompt, fields)])[0]
        # A stop id must not change what comes before it, whatever its place in a block.
        ends = [whole.token_ids[place] for place in (0, 1, 6, 7, 12, 20, 33)]
        for token, one in zip(
            ends, answer(golden_engine, [(prompt, {**fields, "stop_token_ids": [end]}) for end in ends]), strict=True
        ):
            assert one.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
            assert one.finish_reason == "stop"


def test_a_pending_stop_id_ends_without_another_canvas(golden_engine: Engine) -> None:
    seen = 0
    for seed, prompt in enumerate(PROMPTS[:8]):
        fields = {
            "temperature": 1.3,
            "seed": seed,
            "decoding": "diffusion",
            "block_length": 8,
            "refinement_steps": 8,
            "max_tokens": 20,
            "ignore_eos": True,
        }
        tokens = ask(golden_engine, prompt, **fields).token_ids
        if tokens[8] in tokens[:8]:
            continue
        seen += 1
        one = ask(golden_engine, prompt, **fields, stop_token_ids=[tokens[8]])
        assert one.token_ids == tokens[:9]
        assert one.report.denoise_steps == 7
        assert one.report.forwards == 1 + 7 + 1
    assert seen > 0


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_of_one_token_costs_one_forward(golden_engine: Engine, mode: str) -> None:
    one = ask(golden_engine, SOME[0], **MODES[mode], max_tokens=1)
    assert len(one.token_ids) == 1
    assert one.report.forwards == 1
    said = one.report.to_dict()
    assert said["decoding"] == MODES[mode]["decoding"]
    assert [entry["from_token"] for entry in said["plan"]] == [0]


@pytest.mark.parametrize("mode", MODES)
def test_a_block_that_ends_at_max_tokens_is_not_committed(golden_engine: Engine, mode: str) -> None:
    fields = MODES[mode]
    if fields["decoding"] != "diffusion" or "audit" in fields or fields["block_length"] == 1:
        return
    length = fields["block_length"]
    one = ask(golden_engine, SOME[0], **fields, max_tokens=2 * length, ignore_eos=True)
    assert one.report.forwards == 1 + one.report.denoise_steps + 1


def test_diffusion_streams_whole_blocks_and_ar_its_first_token_at_once(golden_engine: Engine) -> None:
    blocks = ask(golden_engine, SOME[0], **MODES["diffusion-schedule"], max_tokens=30, ignore_eos=True)
    assert [len(delta.token_ids) for delta in blocks.deltas] == [7, 7, 7, 7, 2]
    tokens = ask(golden_engine, SOME[0], **MODES["ar"], max_tokens=30, ignore_eos=True)
    assert len(tokens.deltas[0].token_ids) == 1
    assert max(len(delta.token_ids) for delta in tokens.deltas) <= 16
