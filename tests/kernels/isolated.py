"""Runs tests in a process of their own: TRITON_INTERPRET is read when a kernel is decorated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interpreted(file: Path, least: int) -> None:
    """Runs the test file with all kernels in Triton's interpreter; at least so many tests must have passed, and
    none may have failed or been skipped."""
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        # The interpreter's products are NumPy's, whose bits depend on where a row stands in a tile with OpenBLAS's
        # kernels for AVX2 (Haswell, Zen); with these they do not.
        "OPENBLAS_CORETYPE": "Nehalem",
        "TRITON_INTERPRET": "1",
        "STEPDIAL_KERNELS": "triton",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = re.search(r"(\d+) passed( in|,? *\d+ warnings? in)", result.stdout)
    assert summary is not None, result.stdout
    assert int(summary[1]) >= least, result.stdout
