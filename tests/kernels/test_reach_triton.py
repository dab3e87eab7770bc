"""Reach attention's kernel against float64, in the interpreter (`interpreted_reach.py`)."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.isolated import interpreted


def test_equals_float64_in_the_interpreter() -> None:
    interpreted(Path(__file__).parent / "interpreted_reach.py", least=32)
