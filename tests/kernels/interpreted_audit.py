"""The Triton audit kernel in the interpreter. Run by `test_audit.py` in a process of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.audit import accept, accept_torch, accept_triton
from kernels.switch import use_triton
from tests.kernels.audit_cases import accepted, random_blocks


def test_the_switch_leads_to_triton() -> None:
    arguments = random_blocks(1, 3, 32)
    assert use_triton(arguments[0])
    assert accept(*arguments).kept.tolist() == [accepted(arguments, block)[0] for block in range(3)]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 5), width=st.integers(1, 64))
def test_equals_the_rule(seed: int, blocks: int, width: int) -> None:
    arguments = random_blocks(seed, blocks, width)
    got = accept_triton(*arguments)
    assert list(zip(got.kept.tolist(), got.pending.tolist(), strict=True)) == [
        accepted(arguments, block) for block in range(blocks)
    ]


@pytest.mark.parametrize("width", [1, 2, 33])
def test_equals_its_reference(width: int) -> None:
    arguments = random_blocks(width, 6, width)
    want, got = accept_torch(*arguments), accept_triton(*arguments)
    assert torch.equal(want.kept, got.kept)
    assert torch.equal(want.pending, got.pending)
