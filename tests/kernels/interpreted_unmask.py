"""The Triton unmask kernel in the interpreter. Run by `test_unmask_triton.py` in a process of its own, because
TRITON_INTERPRET is read when a kernel is decorated."""

from __future__ import annotations

import os

import pytest
import torch

from kernels.unmask import unmask, unmask_torch
from tests.kernels.unmask_cases import random_case

WIDTHS = (1, 2, 7, 8, 16, 31, 32, 33, 48, 64)


def test_this_process_interprets() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert os.environ["STEPDIAL_KERNELS"] == "triton"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policies", [False, True])
def test_equals_the_reference_on_ragged_canvases(width: int, seed: int, policies: bool) -> None:
    case = random_case(1000 * width + seed, canvases=5, width=width, stops=seed, policies=policies)
    reference, arguments = case.arguments(), case.arguments()
    want, got = unmask_torch(*reference), unmask(*arguments)
    assert torch.equal(reference[0], arguments[0])
    assert torch.equal(reference[1], arguments[1])
    assert torch.equal(want.masks_left, got.masks_left)
    assert torch.equal(want.first_stop, got.first_stop)
    assert torch.equal(want.done, got.done)


@pytest.mark.parametrize("policies", [False, True])
def test_writes_nothing_outside_its_tensors(policies: bool) -> None:
    """The interpreter does not check bounds, so every tensor that is written lies between guard values."""
    case = random_case(5, canvases=3, width=24, stops=2, policies=policies)
    arguments = case.arguments()
    guarded = []
    for index in (0, 1):
        tensor = arguments[index]
        buffer = torch.full((tensor.numel() + 128,), 77, dtype=torch.int64).to(tensor.dtype)
        buffer[64:-64] = tensor.flatten()
        arguments[index] = buffer[64:-64].view_as(tensor)
        guarded.append((buffer, buffer.clone()))
    unmask(*arguments)
    for buffer, before in guarded:
        assert torch.equal(buffer[:64], before[:64])
        assert torch.equal(buffer[-64:], before[-64:])
    for row in range(3):
        padding = slice(int(case.length[row]), None)
        assert torch.equal(arguments[0][row, padding], case.canvas[row, padding])
        assert torch.equal(arguments[1][row, padding], case.masked[row, padding])
