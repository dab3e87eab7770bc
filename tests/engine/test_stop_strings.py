"""Stop strings end the text before them, wherever tokens and blocks are cut, in every mode."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.request import GenerationOptions
from tests.engine.serving import MODES, Answer, answer

PROMPT = [1, *range(110, 130)]
SEEDS = range(3)


def answers(engine: Engine, mode: str, stops: list[list[str]], **fields: Any) -> list[Answer]:
    base = {"temperature": 1.0, "max_tokens": 45, "ignore_eos": True, **MODES[mode], **fields}
    return answer(
        engine, [(PROMPT, {**base, "seed": seed, "stop": stop}) for seed, stop in zip(SEEDS, stops, strict=True)]
    )


def pieces(text: str, rng: Random) -> list[str]:
    """Substrings of one to six characters, none of them a replaced byte: a later place is found earlier too."""
    found = []
    for _ in range(40):
        start, length = rng.randrange(len(text)), rng.randrange(1, 7)
        piece = text[start : start + length]
        if piece and "\ufffd" not in piece:
            found.append(piece)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_the_text_ends_before_the_first_stop_string(text_engine: Engine, mode: str) -> None:
    free = answers(text_engine, mode, [[] for _ in SEEDS])
    rng = Random(4)
    for count in (1, 3):
        stops = [rng.sample(pieces(one.text, rng), count) for one in free]
        for one, whole, stop in zip(answers(text_engine, mode, stops), free, stops, strict=True):
            first = min(whole.text.index(text) for text in stop if whole.text.find(text) == _earliest(whole.text, stop))
            assert one.text == whole.text[:first]
            assert one.finish_reason == "stop"
            assert one.token_ids == whole.token_ids[: len(one.token_ids)]
            decode = text_engine.tokenizer.decode if text_engine.tokenizer is not None else None
            assert decode is not None
            # The last token completes the stop string; without it there is none.
            assert any(text in decode(one.token_ids) for text in stop)
            assert not any(text in decode(one.token_ids[:-1]) for text in stop)


def _earliest(text: str, stops: list[str]) -> int:
    """Where the stop string that ends first begins; of two that end together the longer one."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops]
    return min(ends)[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_string_that_never_comes_changes_nothing_and_holds_nothing_back(text_engine: Engine, mode: str) -> None:
    free = answers(text_engine, mode, [[] for _ in SEEDS])
    stops = [[one.text[-3:] + "\x00never", one.text[5:9] + "\x00"] for one in free]
    for one, whole in zip(answers(text_engine, mode, stops), free, strict=True):
        assert one.text == whole.text
        assert one.token_ids == whole.token_ids
        assert one.finish_reason == "length"


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_string_and_max_tokens_agree(text_engine: Engine, mode: str) -> None:
    free = answers(text_engine, mode, [[] for _ in SEEDS], max_tokens=30)
    stops = [[one.text[-1]] if one.text and one.text[-1] != "\ufffd" else [] for one in free]
    for one, whole, stop in zip(answers(text_engine, mode, stops, max_tokens=30), free, stops, strict=True):
        if stop:
            assert one.text == whole.text[: whole.text.index(stop[0])]
            assert one.finish_reason == "stop"


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_what_the_tokenizer_makes_of_the_tokens(text_engine: Engine, mode: str) -> None:
    tokenizer = text_engine.tokenizer
    assert tokenizer is not None
    for one in answers(text_engine, mode, [[] for _ in SEEDS]):
        assert one.text == tokenizer.decode(one.token_ids)
        assert one.text == "".join(delta.text for delta in one.deltas)


def test_diffusion_stops_denoising_once_the_stop_string_stands(text_engine: Engine) -> None:
    mode = "diffusion-schedule"
    free = answers(text_engine, mode, [[] for _ in SEEDS], block_length=32)
    stops = [[next(character for character in one.text if character != "\ufffd")] for one in free]
    for one, whole in zip(answers(text_engine, mode, stops, block_length=32), free, strict=True):
        assert one.report.forwards < whole.report.forwards
        assert one.report.blocks <= 2


def test_stop_strings_need_a_tokenizer(golden_engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="stop strings need a tokenizer"):
        golden_engine.intake.sequence("x", [1, 2], GenerationOptions(stop=["a"]), None, 0.0)
