"""What a serving process sets for itself, looked at in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ROUNDS = 20
FAULTS = f"""
import resource, sys
from deployments.process import for_serving

if sys.argv[1] == "serving":
    for_serving(beside_an_engine=True)

def use():
    # As a forward's activations: together more than is kept by itself, less than is to be kept.
    blocks = [bytearray(18 << 20) for _ in range(3)]
    del blocks

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_freed_memory_is_kept_for_the_next_forward() -> None:
    def faults(how: str) -> float:
        asked = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(asked.stdout) / ROUNDS

    assert faults("serving") < 100 < 1000 < faults("plain")
