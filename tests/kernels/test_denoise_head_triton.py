"""The Triton denoise head against float64 loops and its PyTorch reference, in the interpreter."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.isolated import interpreted


def test_equals_the_reference_in_the_interpreter() -> None:
    interpreted(Path(__file__).with_name("interpreted_denoise_head.py"), least=45)
