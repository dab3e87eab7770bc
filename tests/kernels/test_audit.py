"""The audit of many blocks at once: against a plain loop, and against the engine's rule for one block."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding.audit import kept_tokens
from engine.plan import Audit
from kernels.audit import EXACT, KEEP, accept
from tests.kernels.audit_cases import accepted, random_blocks
from tests.kernels.isolated import interpreted


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 8), width=st.integers(1, 64))
def test_equals_the_rule_written_as_a_loop(seed: int, blocks: int, width: int) -> None:
    arguments = random_blocks(seed, blocks, width)
    result = accept(*arguments)
    got = list(zip(result.kept.tolist(), result.pending.tolist(), strict=True))
    assert got == [accepted(arguments, block) for block in range(blocks)]


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 64))
def test_equals_the_engines_rule(seed: int, width: int) -> None:
    arguments = random_blocks(seed, 6, width)
    canvas, picks, ratios, length, floor = arguments
    result = accept(*arguments)
    for block in range(6):
        size = int(length[block])
        bound = float(floor[block])
        audit: Audit = "exact" if bound == EXACT else "off" if bound == KEEP else math.exp(bound)
        if not isinstance(audit, float) or abs(bound + 1) > 1e-9:  # exp may round a ratio at the floor either way
            tokens = canvas[block, :size].tolist()
            want = kept_tokens(tokens, picks[block, :size].tolist(), ratios[block, : size - 1].tolist(), audit)
            assert int(result.kept[block]) == want


def test_equals_the_reference_in_the_interpreter() -> None:
    interpreted(Path(__file__).with_name("interpreted_audit.py"), least=5)
