"""Every kernel form compiles for sm_90 within its committed budget: `budget.json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.aot import MOST_SHARED_BYTES
from tests.kernels.layer_forms import OVERLAPPING

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUDGET: dict[str, dict[str, int]] = json.loads((HERE / "budget.json").read_text())
REGISTERS_OF_A_PROCESSOR = 65_536
SHARED_BYTES_OF_A_PROCESSOR = 233_472
"""228 KiB on sm_90, of which every program costs `RESERVED_BYTES` besides its own."""
RESERVED_BYTES = 1024


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.aot"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    resources: dict[str, dict[str, int]] = json.loads(result.stdout)
    return resources


def test_every_form_has_a_budget_and_every_budget_a_form(compiled: dict[str, dict[str, int]]) -> None:
    assert sorted(compiled) == sorted(BUDGET)


@pytest.mark.parametrize("name", BUDGET)
def test_form_keeps_its_budget(name: str, compiled: dict[str, dict[str, int]]) -> None:
    used, budget = compiled[name], BUDGET[name]
    assert used["STACK"] == used["LOCAL"] == used["SPILLS"] == 0, used
    assert used["REG"] <= budget["registers"], used
    assert used["SHARED"] <= budget["shared_bytes"] < MOST_SHARED_BYTES, used
    if budget["tensor_core"]:
        assert used["HGMMA"] > 0, used
    programs = budget.get("programs_at_once", 1)
    registers = -(-used["REG"] // 8) * 8 * 32 * used["WARPS"]
    assert programs * registers <= REGISTERS_OF_A_PROCESSOR, used
    assert programs * (used["SHARED"] + RESERVED_BYTES) <= SHARED_BYTES_OF_A_PROCESSOR, used
    if budget.get("async_copies"):
        assert used["LDGSTS"] > 0, used
    if budget.get("tensor_loads"):
        assert used["UTMALDG"] > 0, used
    assert used["UBLKPF"] == budget.get("prefetches", 0), used
    assert used["WAITS"] == used["PREEXIT"] == name.endswith(OVERLAPPING), used
    assert used["TOO EARLY"] == 0, used
