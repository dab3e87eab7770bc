"""The launcher of an engine by itself: workers are child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP_S = 5.0


class WorkerProcess:
    """A worker in a child process of this one, which runs `module`."""

    module = "engine.group.worker"

    def __init__(self, directory: str, rank: int) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        # A session of its own: Ctrl-C is for rank 0, and the worker ends with it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, directory, str(rank)],
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str | None:
        status = self._process.poll()
        if status is None:
            return None
        return (
            f"its process ended with status {status}" if status >= 0 else f"its process was killed (signal {-status})"
        )

    def stop(self) -> None:
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
