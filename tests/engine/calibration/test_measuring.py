"""A cell measured: the same answers at any load, a row each, and a run that goes on where it was stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from engine.calibration.cells import Cell
from engine.calibration.measuring import Job, answers, measure, read_rows
from engine.calibration.prompts import Prompt
from engine.engine import Engine
from engine.plan import AR, diffusion
from engine.request import GenerationOptions
from tests.engine.serving import PROMPTS

EVALUATED = [Prompt(tuple([*PROMPTS[place % len(PROMPTS)], 20 + place])) for place in range(12)]


def job(tmp_path: Path, cell: Cell, deadline_s: float = float("inf")) -> Job:
    return Job(cell, tmp_path / f"{cell.name}.jsonl", max_tokens=12, deadline_s=deadline_s)


@pytest.mark.parametrize("load", [1, 3, 64])
def test_any_load_gives_the_answers_of_one_batch(golden_engine: Engine, load: int) -> None:
    options = GenerationOptions(
        temperature=0.7, seed=5, max_tokens=12, decoding="diffusion", block_length=8, threshold=0.9
    )
    requests = [(prompt.token_ids, options) for prompt in EVALUATED]
    expected: dict[int, list[int]] = {index: [] for index in range(len(requests))}
    for index, event in golden_engine.run_sync([(ids, option, None) for ids, option in requests]):
        expected[index] += getattr(event, "token_ids", [])
    most = 0
    found = {}
    for index, output in answers(golden_engine, requests, load):
        most = max(most, len(golden_engine.core.running) + len(golden_engine.core.waiting) + 1)
        found[index] = output.token_ids
    assert found == expected
    assert most <= load


def test_leaving_early_frees_the_engine(golden_engine: Engine) -> None:
    options = GenerationOptions(temperature=0.0, max_tokens=30, decoding="ar", ignore_eos=True)
    stream = answers(golden_engine, [(prompt.token_ids, options) for prompt in EVALUATED], 4)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert golden_engine.core.idle
    assert golden_engine.core.pool.in_use() == 0


def test_a_stopped_cell_goes_on_where_it_was(golden_engine: Engine, tmp_path: Path) -> None:
    one = job(tmp_path, Cell(AR, "calibration", 4, 6, 0.7, 2))
    told: list[int] = []
    assert measure(golden_engine, one, EVALUATED, told.append)
    assert sum(told) == 12
    rows = read_rows(one.file, one.cell, EVALUATED)
    assert rows is not None
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, s) for p in range(6) for s in range(2)]
    lines = one.file.read_text().splitlines()
    marked = [json.dumps({**json.loads(line), "compute_ms": -1.0}) for line in lines[:5]]
    one.file.write_text("\n".join([*marked, lines[5][: len(lines[5]) // 2]]))
    assert read_rows(one.file, one.cell, EVALUATED) is None
    assert measure(golden_engine, one, EVALUATED, told.append)
    again = read_rows(one.file, one.cell, EVALUATED)
    assert again is not None
    assert [row["ids"] for row in again] == [row["ids"] for row in rows]
    assert sum(row["compute_ms"] == -1.0 for row in again) == 5, "what was there is not measured again"


def test_a_longer_run_keeps_the_rows_of_a_short_one(golden_engine: Engine, tmp_path: Path) -> None:
    short, long = (job(tmp_path, Cell(AR, "calibration", 4, count)) for count in (4, 8))
    assert short.file == long.file
    measure(golden_engine, short, EVALUATED, lambda _: None)
    told: list[int] = []
    assert measure(golden_engine, long, EVALUATED, told.append)
    assert told == [4, 1, 1, 1, 1]


def test_rows_of_another_prompt_do_not_count(golden_engine: Engine, tmp_path: Path) -> None:
    one = job(tmp_path, Cell(AR, "calibration", 4, 4))
    measure(golden_engine, one, EVALUATED, lambda _: None)
    changed = [EVALUATED[0], Prompt((1, 2, 3)), *EVALUATED[2:]]
    assert read_rows(one.file, one.cell, changed) is None
    told: list[int] = []
    assert measure(golden_engine, one, changed, told.append)
    assert told == [3, 1]


def test_after_the_deadline_the_cell_is_left_incomplete(golden_engine: Engine, tmp_path: Path) -> None:
    late = job(tmp_path, Cell(diffusion(8, 2), "calibration", 1, 6), deadline_s=time.time() - 1)
    assert not measure(golden_engine, late, EVALUATED, lambda _: None)
    assert read_rows(late.file, late.cell, EVALUATED) is None
    assert len(late.file.read_text().splitlines()) == 1
    assert golden_engine.core.idle


def test_a_cell_can_be_told_to_stop(golden_engine: Engine, tmp_path: Path) -> None:
    one = job(tmp_path, Cell(AR, "calibration", 1, 6))
    told: list[int] = []
    assert not measure(golden_engine, one, EVALUATED, told.append, lambda: len(told) > 2)
    assert told == [0, 1, 1]
    assert measure(golden_engine, one, EVALUATED, told.append)
    assert told == [0, 1, 1, 2, 1, 1, 1, 1]


def test_an_answer_is_right_or_wrong_by_its_text(text_engine: Engine, tmp_path: Path) -> None:
    tokenizer = text_engine.tokenizer
    assert tokenizer is not None
    ids = tuple(tokenizer.encode("Hello"))
    options = GenerationOptions(temperature=0.0, max_tokens=12, decoding="ar")
    ((_, output),) = answers(text_engine, [(ids, options)], 1)
    prompts = [Prompt(ids, f" {output.text.strip()}\n"), Prompt(ids, output.text + "x"), Prompt(ids)]
    one = job(tmp_path, Cell(AR, "calibration", 3, 3))
    measure(text_engine, one, prompts, lambda _: None)
    rows = read_rows(one.file, one.cell, prompts)
    assert rows is not None
    assert [row["exact"] for row in rows] == [True, False, None]
