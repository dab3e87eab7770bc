"""A cell's numbers from rows whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.calibration.cells import Cell
from engine.calibration.prompts import Prompt
from engine.calibration.summary import cell_entry, outcomes
from engine.plan import AR, diffusion

CELL = Cell(diffusion(8, 2), "test", 64, 4, 0.7, 2)
PROMPTS = [Prompt((place,), "x", "even" if place % 2 == 0 else "odd") for place in range(6)]


def rows(exact: list[bool], **changes: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": place // 2, "sample": place % 2, "exact": right, "tokens": 10, "forwards": 6, "steps": 3,
         "compute_ms": 2.0, "latency_ms": 4.0, "audit_logprob": -0.5, "ids": [place // 2, 7], **changes}
        for place, right in enumerate(exact)
    ]  # fmt: skip


RIGHT = [True, True, True, False, False, False, True, True]


def entry(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"metric": "exact_match", "references": None, "ar": None, **changes}
    made = cell_entry(CELL, given.pop("rows", rows(RIGHT)), PROMPTS, **given)
    assert made is not None
    return made


def test_quality_is_the_mean_over_prompts_of_their_answers() -> None:
    values = outcomes(rows(RIGHT), CELL, "exact_match", None)
    assert values is not None
    assert values.tolist() == [1.0, 0.5, 0.0, 1.0]
    made = entry()
    assert (made["metric"], made["quality"]) == ("exact_match", 0.625)
    assert made["quality_low"] < 0.625 < made["quality_high"]
    assert {label: (row["prompts"], row["quality"]) for label, row in made["by_label"].items()} == {
        "even": (2, 0.5), "odd": (2, 0.75),
    }  # fmt: skip
    assert made["by_label"]["even"]["quality_low"] == 0.0


def test_costs_are_means_and_the_prompt_is_one_forward() -> None:
    made = entry()
    assert (made["tokens"], made["forwards"], made["steps"], made["compute_ms"], made["latency_ms"]) == (10, 6, 3, 2, 4)
    assert made["tokens_per_forward"] == 2.0
    assert made["audit_logprob"] == pytest.approx(-0.5)


def test_an_answer_that_was_not_scored_has_no_weight() -> None:
    mixed = rows(RIGHT)
    mixed[0]["audit_logprob"] = None
    mixed[1] |= {"audit_logprob": -4.0, "tokens": 70}
    assert entry(rows=mixed)["audit_logprob"] == pytest.approx(-(0.5 * 60 + 4.0 * 70) / 130, abs=1e-4)
    assert entry(rows=rows(RIGHT, audit_logprob=None))["audit_logprob"] is None


def test_the_difference_to_ar_is_paired() -> None:
    same = entry(ar=np.array([1.0, 0.5, 0.0, 1.0]))
    assert same["difference_to_ar"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert entry(ar=np.ones(4))["difference_to_ar"]["value"] == -0.375


def test_agreement_compares_tokens_with_ars_own_answer() -> None:
    references = [[0, 7], [9, 9], [2, 7], [3, 7]]
    made = entry(metric="agreement_with_ar", references=references)
    assert (made["metric"], made["quality"]) == ("agreement_with_ar", 0.75)
    assert (made["exact_match"]["prompts"], made["exact_match"]["value"]) == (4, 0.625)
    without = cell_entry(CELL, rows(RIGHT), PROMPTS, "agreement_with_ar", None, None)
    assert without is None, "without AR's answers there is nothing to agree with"


def test_a_prompt_without_an_answer_is_not_counted_as_wrong() -> None:
    prompts = [Prompt((0,), "x"), *(Prompt((place,)) for place in range(1, 4))]
    given = rows([True, True, *[None] * 6])  # type: ignore[list-item]
    made = cell_entry(CELL, given, prompts, "agreement_with_ar", [[0, 7]] * 4, None)
    assert made is not None
    assert (made["exact_match"]["prompts"], made["exact_match"]["value"]) == (1, 1.0)


def test_a_cell_is_described_by_its_rung() -> None:
    made = cell_entry(Cell(AR, "test", 64, 4, 0.0, 2), rows(RIGHT), PROMPTS, "exact_match", None, None)
    assert made is not None
    names = ("split", "temperature", "load", "decoding", "block_length", "threshold", "audit")
    assert [made[name] for name in names] == [
        "test", 0.0, 64, "ar", 1, None, "off",
    ]  # fmt: skip
