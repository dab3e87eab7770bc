"""What a serving process sets for itself, looked at in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROUNDS = 20
FAULTS = f"""
import resource, sys
from threading import Thread

from deployments.process import for_serving

if sys.argv[1] == "serving":
    for_serving(beside_an_engine=True)

def use():
    # As a forward's activations: together more than is kept by itself, less than is to be kept. In a thread of its own,
    # as the engine's loop, whose heap is not the first of the process.
    blocks = [bytearray(18 << 20) for _ in range(3)]
    del blocks

def loop():
    use()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range({ROUNDS}):
        use()
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

thread = Thread(target=loop)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's malloc is told anything")
def test_freed_memory_is_kept_for_the_next_forward() -> None:
    def faults(how: str) -> float:
        asked = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(asked.stdout) / ROUNDS

    serving, plain = faults("serving"), faults("plain")
    print(f"page faults a round: {serving} in a serving process, {plain} in another")
    assert serving < 100 < 1000 < plain
