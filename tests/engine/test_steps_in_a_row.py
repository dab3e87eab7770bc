"""Draft steps that are run without a look at what came of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.decoding.canvas import MOST_IN_A_ROW, drafts_end, open_canvas, steps_in_a_row
from engine.engine import Engine
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


def test_steps_in_a_row() -> None:
    interpreted(Path(__file__).with_name("interpreted_in_a_row.py"), least=6)


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
    "fields", [{"threshold": 0.9}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.9}]
)
def test_what_may_turn_out_otherwise_is_looked_at(golden_engine: Engine, fields: dict[str, Any]) -> None:
    assert steps_in_a_row([drafting(golden_engine, 8, **fields)]) == 1


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
