"""The thinking budget: the end-of-thinking token stands exactly where the budget ends, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from tests.engine.serving import EXACT_MODES, answer, load
from tests.engine.serving import MODES as ALL_MODES
from tests.oracle.random_model import random_tensors, raw_config, save_checkpoint

OPEN, CLOSE = 12, 13
SEEDS = range(3)
MODES = {name: fields for name, fields in ALL_MODES.items() if name not in ("diffusion-schedule", "diffusion-score")}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Random weights in which the opening marker is likely and the closing one is not."""
    raw = raw_config(hidden_size=32, intermediate_size=32, head_dim=16, num_hidden_layers=1, vocab_size=128)
    tensors = random_tensors(raw, seed=8)
    # The first channel is large in every hidden state: its head weights are as good as biases.
    tensors["encoder.embed_tokens.weight"][:, 0] = 6.0
    tensors["encoder.norm.weight"][0] = 1.0
    bias = tensors["diffusion_head.weight"][:, 0]
    bias[:] = 0.0
    bias[OPEN], bias[CLOSE] = 0.6, -0.6
    return load(save_checkpoint(tmp_path_factory.mktemp("thinker") / "checkpoint", raw, tensors))


def answers(engine: Engine, mode: str, prompt: list[int], budget: int | None, **fields: Any) -> list[list[int]]:
    asked = {"max_tokens": 28, "ignore_eos": True, "temperature": 1.2, **MODES[mode], **fields}
    if budget is not None:
        asked["max_thinking_tokens"] = budget
    return [one.token_ids for one in answer(engine, [(prompt, {**asked, "seed": seed}) for seed in SEEDS])]


def thoughts(tokens: list[int], opened: bool) -> list[int]:
    """Lengths of the thinking sections of an output, the last one perhaps cut by its end."""
    lengths, inside = [], 0 if opened else None
    for token in tokens:
        if token == CLOSE:
            if inside is not None:
                lengths.append(inside)
            inside = None
        elif inside is not None:
            inside += 1
        elif token == OPEN:
            inside = 0
    return lengths if inside is None else [*lengths, inside]


@pytest.mark.parametrize("budget", [0, 17])
@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_inside_thinking_gets_the_end_marker_at_the_offset(thinker: Engine, mode: str, budget: int) -> None:
    free = answers(thinker, mode, [1, 50, OPEN, 51], None)
    at_the_budget = 0
    for tokens, unlimited in zip(answers(thinker, mode, [1, 50, OPEN, 51], budget), free, strict=True):
        assert len(tokens) == 28
        end = tokens.index(CLOSE)
        assert end <= budget
        at_the_budget += end == budget
        if mode in ("ar", "self-speculation", "self-speculation-iterative"):
            assert tokens[:end] == unlimited[:end]
    assert at_the_budget > 0


@pytest.mark.parametrize("budget", [0, 5])
@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_starts_to_think_is_held_to_the_budget(thinker: Engine, mode: str, budget: int) -> None:
    sections = []
    for tokens in answers(thinker, mode, [1, 50, 51], budget, max_tokens=50):
        sections += thoughts(tokens, opened=False)
    assert len(sections) > 2, "the model did not think"
    assert max(sections) <= budget
    assert sections.count(budget) >= 2


@pytest.mark.parametrize("mode", EXACT_MODES)
def test_modes_that_equal_ar_equal_it_under_a_budget(thinker: Engine, mode: str) -> None:
    for prompt in ([1, 50, OPEN, 51], [1, 50, 51]):
        for budget in (0, 9):
            assert answers(thinker, mode, prompt, budget) == answers(thinker, "ar", prompt, budget)


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_beyond_the_output_changes_nothing(thinker: Engine, mode: str) -> None:
    prompt = [1, 50, OPEN, 51]
    assert answers(thinker, mode, prompt, 100) == answers(thinker, mode, prompt, None)


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_thought_in_the_prompt_is_over(thinker: Engine, mode: str) -> None:
    prompt = [1, 50, OPEN, 51, CLOSE]
    greedy = {"temperature": 0}
    free = answers(thinker, mode, prompt, None, **greedy)[0]
    if OPEN not in free:
        assert answers(thinker, mode, prompt, 0, **greedy)[0] == free


def test_a_vocabulary_without_markers_refuses_a_budget(text_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from engine.errors import InvalidRequest
    from engine.request import GenerationOptions

    copy = tmp_path / "plain"
    shutil.copytree(text_checkpoint, copy)
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace("<think>", "<muse>").replace("</think>", "</muse>"))
    engine = load(copy)
    with pytest.raises(InvalidRequest, match="max_thinking_tokens"):
        engine.intake.sequence("x", [1, 2], GenerationOptions(max_thinking_tokens=3), None, 0.0)
    engine.intake.sequence("x", [1, 2], GenerationOptions(), None, 0.0)
