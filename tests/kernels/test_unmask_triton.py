"""The Triton form of the unmask rule: against its reference in the interpreter, and compiled for sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET",)}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_equals_the_reference_in_the_interpreter() -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_unmask.py")]
    result = run(arguments, TRITON_INTERPRET="1", STEPDIAL_KERNELS="triton")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "32 passed" in result.stdout


def test_compiles_for_sm_90_without_spills() -> None:
    result = run(["-m", "tests.kernels.compile_unmask"])
    assert result.returncode == 0, result.stdout + result.stderr
    for lanes, used in json.loads(result.stdout).items():
        assert used["STACK"] == 0, (lanes, used)
        assert used["LOCAL"] == 0, (lanes, used)
        assert used["REG"] <= 128, (lanes, used)
        assert used["SHARED"] <= 4096, (lanes, used)
