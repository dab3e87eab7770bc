"""The tasks: one correct answer each, and splits that share nothing."""

import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import engine.tiny
from engine.tiny.tasks import FAMILIES, SPLITS, Split, Task, generate


@cache
def tasks(split: Split = "train", count: int = 1200, seed: int = 5) -> list[Task]:
    return list(generate(split, count, seed))


def of(family: str) -> list[Task]:
    chosen = [task for task in tasks() if task.task == family]
    assert len(chosen) > 30
    return chosen


def prompt(task: Task) -> str:
    return task.messages[-1]["content"]


def test_splits_share_no_prompt_and_no_combination() -> None:
    prompts = [{json.dumps(task.messages) for seed in (0, 1) for task in tasks(split, 800, seed)} for split in SPLITS]
    combinations = [
        {(task.task, task.combination) for seed in (0, 1) for task in tasks(split, 800, seed)} for split in SPLITS
    ]
    for sets in (prompts, combinations):
        assert sets[0].isdisjoint(sets[1])
        assert sets[0].isdisjoint(sets[2])
        assert sets[1].isdisjoint(sets[2])


def test_same_seed_same_tasks_and_another_seed_others() -> None:
    assert list(generate("train", 50, 1)) == list(generate("train", 50, 1))
    assert tasks(seed=1, count=50) != tasks(seed=2, count=50)


def test_a_longer_run_starts_with_the_shorter_one() -> None:
    assert tasks(count=60)[:20] == tasks(count=20)


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'validation'"):
        next(generate("validation", 1, 0))  # type: ignore[arg-type]


def test_every_family_occurs() -> None:
    assert set(Counter(task.task for task in tasks())) == set(FAMILIES)


def test_a_third_of_the_answers_spans_several_blocks() -> None:
    tokenizer = Tokenizer.from_file(str(Path(engine.tiny.__file__).parent / "checkpoint" / "tokenizer.json"))
    lengths = [len(tokenizer.encode(task.answer, add_special_tokens=False).ids) + 1 for task in tasks("test")]
    assert max(lengths) <= 256
    assert sum(length >= 96 for length in lengths) >= len(lengths) / 3


def test_addition_is_right_in_every_column() -> None:
    for task in of("addition"):
        left, right = map(int, re.findall(r"\d+", prompt(task)))
        *columns, total = task.answer.split("\n")
        assert total == f"total {left + right}"
        assert len(columns) == len(str(left)) == len(str(right))
        for place, column in enumerate(columns):
            below = 10**place
            a, b, carry, digit, carried = map(int, re.findall(r"\d+", column))
            assert (a, b) == (left // below % 10, right // below % 10)
            assert carry == (left % below + right % below) // below
            assert 10 * carried + digit == a + b + carry


def test_sorting() -> None:
    for task in of("sorting"):
        items, answer = prompt(task).split(":")[1].split(), task.answer.split()
        assert Counter(items) == Counter(answer)
        assert len(set(items)) == len(items)
        assert all(a < b for a, b in pairwise(answer))


def test_reversing() -> None:
    for task in of("reversing"):
        words = prompt(task).split("\n")[1:]
        assert len(words) == len(set(words))
        assert task.answer.split("\n")[::-1] == words


def test_replacing_changes_one_word() -> None:
    for task in of("replacing"):
        request, text = prompt(task).split("\n", 1)
        new, old = re.fullmatch(r"Copy this list, but write (\w+) for (\w+):", request).groups()  # type: ignore[union-attr]
        assert new not in text.split()
        assert old in text.split()
        assert task.answer == re.sub(rf"\b{old}\b", new, text)


def test_records_are_json_that_says_what_the_prompt_says() -> None:
    for task in of("records"):
        rows = [json.loads(line) for line in task.answer.split("\n")]
        request, *lines = prompt(task).split("\n")
        if "table" in request:
            header, *cells = [line.split(",") for line in lines]
            assert [{k: str(v) for k, v in row.items()} for row in rows] == [
                dict(zip(header, row, strict=True)) for row in cells
            ]
        else:
            assert lines == [f"{row['name']} is a {row['job']} and lives in {row['city']}." for row in rows]


def test_code_defines_the_class_that_was_asked_for() -> None:
    for task in of("code"):
        space: dict[str, type] = {}
        exec(task.answer, space)
        name, fields, getters = re.fullmatch(
            r"Write a class (\w+) with fields ([\w, ]+?)(?: and getters for ([\w, ]+))?\.", prompt(task)
        ).groups()  # type: ignore[union-attr]
        values = {field: index for index, field in enumerate(fields.split(", "))}
        made = space[name](**values)
        assert vars(made) == values
        for field in getters.split(", ") if getters else []:
            assert getattr(made, f"get_{field}")() == values[field]


def test_a_filled_gap_is_python_and_the_name_occurs_around_it() -> None:
    for task in of("gap"):
        code = prompt(task).split("\n", 1)[1]
        assert code.count("____") == 1
        compile(code.replace("____", task.answer), "gap", "exec")
        assert re.search(rf"\b{task.answer}\b", code)


def test_recall_repeats_a_fact_of_an_earlier_turn() -> None:
    for task in of("recall"):
        told = [message["content"] for message in task.messages[:-1] if message["role"] == "user"]
        assert told.count(task.answer) == 1
        asked = prompt(task).removeprefix("What is ").removesuffix("?")
        assert [fact for fact in told if fact.lower().startswith(asked.lower())] == [task.answer]
