"""One section in a process of its own: its errors, its memory, its end by the clock."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.floors import Ceilings
from benchmarks.gpu.section import DeviceLost, Section

GRACE_S = 60.0
"""So long a section may go on after its time, for the row that it is in; then its process is ended."""
LOST = 3
"""Status of a process that has lost the device, and noted why."""
SHOWN = 4000
"""Characters of a dead process's last words that are kept."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a section's process is told.

    Attributes:
        name: the section's. device: torch's name. seconds: that it may take. done: see `Section`.
    """

    name: str
    device: str
    tiny: bool
    ceilings: Ceilings | None
    seconds: float
    done: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        data = json.loads(text)
        ceilings = data.pop("ceilings")
        done = tuple(data.pop("done"))
        return Task(ceilings=None if ceilings is None else Ceilings(**ceilings), done=done, **data)


def run_here(task: Task, file: Path | None = None) -> dict[str, Any]:
    """Runs the section in this process; what it found, as plain JSON.

    Raises DeviceLost where what there is was kept in a file, so that another process may find the rest.
    """
    device = torch.device(task.device)
    ends_s = time.monotonic() + task.seconds
    section = Section(device, task.tiny, task.ceilings, ends_s, file, frozenset(task.done))
    try:
        importlib.import_module(f"benchmarks.gpu.{task.name}").run(section)
    except DeviceLost as error:
        if file is not None:
            raise
        section.fail(task.name, error)
    except Exception as error:
        section.fail(task.name, error)
    return section.to_dict()


def run_apart(task: Task, grace_s: float = GRACE_S) -> dict[str, Any]:
    """Runs the section in a process of its own; what it found until its end, and how that came about if it was bad.

    Where that process has lost the device, another one goes on behind what has failed.
    """
    found: dict[str, Any] = {"rows": [], "errors": [], "left_out": []}
    ends_s = time.monotonic() + task.seconds
    while True:
        status, one = _run_apart(task, grace_s)
        for kind, rows in found.items():
            rows += one[kind]
        done = {row["name"] for rows in found.values() for row in rows}
        if status == LOST and done == set(task.done):
            again = "the device was lost again, and nothing new was found"
            found["errors"].append({"name": task.name, "error": again, "traceback": again})
            return found
        if status != LOST:
            return found
        task = dataclasses.replace(task, seconds=max(ends_s - time.monotonic(), 0), done=tuple(sorted(done)))


def _run_apart(task: Task, grace_s: float) -> tuple[int | None, dict[str, Any]]:
    """Its process's status, None where it was ended by the clock, and what that has found."""
    with tempfile.TemporaryDirectory() as directory:
        file, words = Path(directory) / "section.json", Path(directory) / "stderr"
        command = [sys.executable, "-m", "benchmarks.gpu.task", task.to_json(), str(file)]
        status: int | None = None
        with words.open("w", encoding="utf-8") as stderr:
            try:
                status = subprocess.run(command, stderr=stderr, timeout=task.seconds + grace_s).returncode
                end = None if status in (0, LOST) else f"the section's process ended with status {status}"
            except subprocess.TimeoutExpired:
                end = f"ended by the clock after {task.seconds + grace_s:.0f} s"
        found: dict[str, Any] = {"rows": [], "errors": [], "left_out": []}
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
        if end is not None:
            last = words.read_text(encoding="utf-8", errors="replace")[-SHOWN:]
            found["errors"].append({"name": task.name, "error": end, "traceback": last})
        return status, found


if __name__ == "__main__":
    try:
        run_here(Task.from_json(sys.argv[1]), Path(sys.argv[2]))
    except DeviceLost:
        # What has failed is noted already, under its own name.
        traceback.print_exc()
        sys.exit(LOST)
