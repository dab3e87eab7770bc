"""Evaluation sets: splits that share nothing, and bad lines that are named."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine.calibration.cells import SPLITS
from engine.calibration.options import SHIPPED
from engine.calibration.prompts import EvaluationError, Limits, built_in_set, read_prompts
from engine.checkpoint.tokenizer import Tokenizer

LIMITS = Limits(vocab_size=768, context=512, max_tokens=64)
MANY = dict.fromkeys(SPLITS, 1000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_dir(SHIPPED)
    assert found is not None
    return found


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_built_in_splits_share_no_prompt_and_a_short_run_is_the_beginning_of_a_long_one(tokenizer: Tokenizer) -> None:
    long = built_in_set(tokenizer, dict.fromkeys(SPLITS, 120))
    short = built_in_set(tokenizer, {"calibration": 50, "selection": 30, "test": 20})
    prompts = {split: {prompt.token_ids for prompt in long.splits[split]} for split in SPLITS}
    assert not prompts["calibration"] & prompts["selection"]
    assert not (prompts["calibration"] | prompts["selection"]) & prompts["test"]
    for split in SPLITS:
        assert len(long.splits[split]) == 120
        assert short.splits[split] == long.splits[split][: len(short.splits[split])]
    assert long.metric == "exact_match"
    assert {prompt.label for prompt in long.splits["test"]} >= {"addition", "records", "code"}


def test_a_users_splits_follow_from_the_prompts_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [{"prompt": f"Question {number}?", "answer": str(number)} for number in range(200)]
    first = read_prompts(write(tmp_path / "a.jsonl", lines), tokenizer, LIMITS, MANY)
    Random(1).shuffle(lines)
    second = read_prompts(write(tmp_path / "b.jsonl", [*lines, lines[0], ""]), tokenizer, LIMITS, MANY)
    assert first.splits == second.splits
    assert (first.repeated, second.repeated) == (0, 1)
    sizes = [len(first.splits[split]) for split in SPLITS]
    assert sum(sizes) == 200
    assert [size / 200 for size in sizes] == pytest.approx([0.4, 0.3, 0.3], abs=0.12)
    assert first.metric == "exact_match"


def test_one_prompt_without_an_answer_makes_agreement_the_metric(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines: list[Any] = [{"prompt": f"Question {number}?", "answer": "x", "label": "quiz"} for number in range(100)]
    del lines[3]["answer"]
    found = read_prompts(write(tmp_path / "a.jsonl", lines), tokenizer, LIMITS, MANY)
    assert found.metric == "agreement_with_ar"
    assert {prompt.label for rows in found.splits.values() for prompt in rows} == {"quiz"}


def test_every_form_of_a_prompt_is_read_as_run_batch_reads_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    lines: list[Any] = [{"prompt_token_ids": [1, 20, 21 + number]} for number in range(60)]
    lines += [{"prompt": "Hello"}, {"messages": messages}]
    found = read_prompts(write(tmp_path / "a.jsonl", lines), tokenizer, LIMITS, MANY)
    ids = {prompt.token_ids for rows in found.splits.values() for prompt in rows}
    assert {tuple(tokenizer.encode("Hello")), tuple(tokenizer.render_chat(messages)), (1, 20, 21)} <= ids


def test_bad_lines_are_named_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines: list[Any] = [
        {"prompt": "fine"},
        "{",
        {"prompt": "a", "messages": []},
        {"prompt": 5},
        {"prompt_token_ids": [1, 900]},
        {"prompt": "a", "answer": 4},
        {"prompt": "a", "label": ""},
        {"prompt_token_ids": [5] * 449},
        {"messages": [{"role": "nobody", "content": "x"}]},
    ]
    with pytest.raises(EvaluationError) as caught:
        read_prompts(write(tmp_path / "bad.jsonl", lines), tokenizer, LIMITS, MANY)
    message = str(caught.value)
    assert "8 bad lines" in message
    for part in (
        "line 2, line: not JSON", "line 3, prompt: give exactly one of", "line 4, prompt: is 5; allowed: text",
        "line 5, prompt_token_ids: has token id 900; allowed: 0 to 767", "line 6, answer: is 4; allowed: a string",
        "line 7, label:", "line 8, prompt: has 449 tokens; allowed: 1 to 448", "line 9, messages:",
    ):  # fmt: skip
        assert part in message
    assert "line 1," not in message


def test_too_few_prompts_are_refused_by_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [{"prompt": f"Question {number}?"} for number in range(12)]
    with pytest.raises(
        EvaluationError, match=r"prompts for the \w+ split \(of 12 different ones\); allowed: at least 10"
    ):
        read_prompts(write(tmp_path / "few.jsonl", lines), tokenizer, LIMITS, MANY)


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    lines: list[Any] = [{"prompt": "Hello"}, {"prompt_token_ids": [1], "answer": "x"}]
    with pytest.raises(EvaluationError, match="give prompt_token_ids") as caught:
        read_prompts(write(tmp_path / "text.jsonl", lines), None, LIMITS, MANY)
    assert "line 2, answer: cannot be compared" in str(caught.value)
