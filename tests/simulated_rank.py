"""A rank whose GPU is simulated, in a process of its own: `python -m tests.simulated_rank DIRECTORY RANK`."""

from __future__ import annotations

import os
import sys

from engine import graphs
from engine.group.subprocesses import WorkerProcess
from engine.group.worker import run_worker
from tests.simulated_cuda import simulated
from tests.simulated_nccl import nccl

TOKENS = (8, 32)
"""Of the graphs, on all ranks: recording more takes the interpreter long."""


FAILS = "SIMULATED_RANK_CANNOT_RECORD"
"""In the environment: recording a graph fails."""


def cannot_record(*_: object) -> None:
    raise RuntimeError("no memory is left for graphs")


class SimulatedRank(WorkerProcess):
    """Started as a child process."""

    module = "tests.simulated_rank"


if __name__ == "__main__":
    graphs.TOKENS = TOKENS
    if os.environ.get(FAILS):
        graphs.recorded = cannot_record
    with simulated(), nccl():
        run_worker(sys.argv[1], int(sys.argv[2]))
