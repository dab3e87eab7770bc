"""The engine gives the same answers on Triton kernels (in the interpreter) as on the CPU's own path."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.isolated import interpreted


def test_answers_are_those_of_the_cpu() -> None:
    interpreted(Path(__file__).with_name("interpreted_kernels.py"), least=5)
