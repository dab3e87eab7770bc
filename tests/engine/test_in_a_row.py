"""Forwards that are run without a look at what came of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.decoding.canvas import (
    AR_BORDERS,
    MOST_IN_A_ROW,
    drafts_end,
    open_canvas,
    steps_in_a_row,
    steps_without_host,
    tokens_in_a_row,
)
from engine.engine import Engine
from engine.plan import diffusion
from engine.request import GenerationOptions
from engine.sequence import Sequence
from tests.kernels.isolated import interpreted

FIXED = {"decoding": "diffusion", "block_length": 8, "temperature": 0}


def drafting(engine: Engine, steps: int, **fields: Any) -> Sequence:
    """A sequence with an open canvas of 8, pending and 7 masks."""
    options = GenerationOptions(**FIXED | {"refinement_steps": steps} | fields)
    one = engine.intake.sequence("test", [5, 6], options, None, 0.0)
    one.tokens.append(7)
    one.has_pending, one.cached = True, 2
    open_canvas(one, 100)
    return one


def test_answers_are_those_of_one_forward_at_a_time() -> None:
    interpreted(Path(__file__).with_name("interpreted_in_a_row.py"), least=20)


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (2, 2), (3, 3), (8, MOST_IN_A_ROW)])
def test_as_many_steps_as_there_are_for_certain(golden_engine: Engine, steps: int, expected: int) -> None:
    assert steps_in_a_row([drafting(golden_engine, steps)]) == expected


def test_never_more_steps_than_masks(golden_engine: Engine) -> None:
    one = drafting(golden_engine, 8)
    canvas = one.open_canvas
    canvas.masked, canvas.masks_left, canvas.step = [False] * 6 + [True] * 2, 2, 1
    assert steps_in_a_row([one]) == 2


def test_all_of_a_forward_go_on_together(golden_engine: Engine) -> None:
    long, short = drafting(golden_engine, 8), drafting(golden_engine, 2)
    assert steps_in_a_row([long, short]) == 2
    looking = drafting(golden_engine, 8)
    looking.open_canvas.masked, looking.open_canvas.masks_left = [False] * 8, 0
    assert steps_in_a_row([long, looking]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0.9},
        {"entropy_bound": 0.5},
        {"remask": 0.1},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.9},
    ],
)
def test_what_may_turn_out_otherwise_is_looked_at(golden_engine: Engine, fields: dict[str, Any]) -> None:
    one = drafting(golden_engine, 8, **fields)
    assert steps_in_a_row([one]) == 1
    assert steps_without_host([one]) == (7 if fields.keys() & {"threshold", "entropy_bound"} else 1)


@pytest.mark.parametrize(("max_tokens", "certain"), [(7, 1), (8, 3), (9, 3)])
def test_a_canvas_that_the_answers_end_cuts_is_looked_at(golden_engine: Engine, max_tokens: int, certain: int) -> None:
    """Its first 7 or 8 tokens are the answer's last ones; pending is one of them."""
    one = drafting(golden_engine, 3, max_tokens=max_tokens)
    assert steps_in_a_row([one]) == certain
    assert steps_without_host([one]) == 3


def test_together_no_more_steps_than_anybody_may_need(golden_engine: Engine) -> None:
    long, short = (drafting(golden_engine, steps, threshold=0.9) for steps in (8, 3))
    assert steps_without_host([long, short]) == 3
    assert steps_without_host([drafting(golden_engine, 8), short]) == 3
    assert steps_without_host([long, speaking(golden_engine)]) == 1
    short.cut = True
    assert steps_without_host([long, short]) == 1


def test_a_sequence_that_is_cut_at_its_deadline_is_looked_at(golden_engine: Engine) -> None:
    one = drafting(golden_engine, 8)
    one.cut = True
    assert steps_in_a_row([one]) == 1


SPECULATION = {"decoding": "self_speculation"}


def speculating(engine: Engine, steps: int) -> Sequence:
    """As `drafting`, for AR to verify."""
    one = drafting(engine, 1, **SPECULATION)
    one.rung = replace(one.rung, refinement_steps=steps)
    return one


def test_the_look_follows_when_all_drafts_are_done(golden_engine: Engine) -> None:
    one, two, many = (speculating(golden_engine, steps) for steps in (1, 2, 8))
    assert drafts_end([one], 1)
    assert drafts_end([two], 2)
    assert not drafts_end([two], 1)
    assert not drafts_end([one, two], 1)
    assert not drafts_end([many], MOST_IN_A_ROW)


@pytest.mark.parametrize("fields", [{"decoding": "diffusion"}, {"threshold": 0.9}, {"temperature": 1.0, "top_k": 5}])
def test_the_host_sees_what_may_end_or_turn_out_otherwise_before_the_look(
    golden_engine: Engine, fields: dict[str, Any]
) -> None:
    assert not drafts_end([drafting(golden_engine, 1, **SPECULATION | fields)], 1)
    cut = drafting(golden_engine, 1, **SPECULATION)
    cut.cut = True
    assert not drafts_end([cut], 1)


def speaking(engine: Engine, tokens: int = 1, **fields: Any) -> Sequence:
    """A sequence of AR that has so many output tokens, the last one pending, at the look at it."""
    options = GenerationOptions(**{"decoding": "ar", "temperature": 0, "max_tokens": 40} | fields)
    one = engine.intake.sequence("test", [5, 6], options, None, 0.0)
    one.tokens += [7] * tokens
    one.has_pending, one.cached = True, len(one.tokens) - 1
    open_canvas(one, 100)
    return one


def test_tokens_of_ar_follow_one_another(golden_engine: Engine) -> None:
    one, another = speaking(golden_engine), speaking(golden_engine, 7, temperature=0.7, seed=1)
    assert tokens_in_a_row([one, another]) == MOST_IN_A_ROW
    assert tokens_in_a_row([one, drafting(golden_engine, 8)]) == 1
    assert tokens_in_a_row([speculating(golden_engine, 1)]) == 1


@pytest.mark.parametrize(("tokens", "expected"), [(36, MOST_IN_A_ROW), (37, 3), (38, 2), (39, 1)])
def test_no_token_beyond_the_answers_end(golden_engine: Engine, tokens: int, expected: int) -> None:
    assert tokens_in_a_row([speaking(golden_engine, tokens)]) == expected


def test_no_token_beyond_the_context(golden_engine: Engine) -> None:
    one = speaking(golden_engine)
    one.limits.context = one.cached + 2
    assert tokens_in_a_row([one]) == 2


def test_no_token_beyond_a_border_at_which_the_rung_may_change(golden_engine: Engine) -> None:
    one = speaking(golden_engine, AR_BORDERS + 1)
    one.plan = replace(one.plan, ladder=(one.rung, diffusion(8, 2)))
    assert tokens_in_a_row([one]) == AR_BORDERS - 1


@pytest.mark.parametrize(
    "fields", [{"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.9}, {"max_thinking_tokens": 3}]
)
def test_what_the_host_has_a_part_in_it_sees(golden_engine: Engine, fields: dict[str, Any]) -> None:
    assert tokens_in_a_row([speaking(golden_engine, **fields)]) == 1
    cut = speaking(golden_engine)
    cut.cut = True
    assert tokens_in_a_row([cut]) == 1
