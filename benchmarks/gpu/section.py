"""What every section of the benchmark shares: the device, the time that is left, and rows that may fail alone."""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.floors import Ceilings
from benchmarks.gpu.timing import Clock
from kernels.overlap import VARIABLE
from kernels.switch import use_triton

Row = dict[str, Any]


class DeviceLost(BaseException):
    """The device is of no use to this process any more; another one may go on."""


@dataclass(slots=True)
class Section:
    """One section as it runs: what it is given, and what it has found.

    Attributes:
        tiny: small shapes, for rehearsing where there is no GPU; its figures say nothing about one.
        ceilings: what this machine was measured to do; None where that section did not run.
        ends_s: when the section should end, on `time.monotonic`.
        file: where to keep what there is after every row; None = nowhere.
        done: names of rows, and of what failed as a whole, that an earlier process has dealt with.
        rows: finished rows, plain JSON. errors: what failed, with its traceback. left_out: rows for which there was
            no time or no memory, and why.
    """

    device: torch.device
    tiny: bool
    ceilings: Ceilings | None
    ends_s: float
    file: Path | None = None
    done: frozenset[str] = frozenset()
    rows: list[Row] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(self.device)

    @property
    def triton(self) -> bool:
        """Whether the kernels are measured; else their PyTorch forms, on a CPU."""
        return use_triton(torch.empty(0, device=self.device))

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.ends_s

    def row(self, name: str, make: Callable[[], Row]) -> None:
        """Adds the row that `make` gives under `name`. A failure is noted, and what follows goes on.

        Raises DeviceLost where it cannot in this process.
        """
        if self.omits(name):
            return
        failed = len(self.errors)
        try:
            self.rows.append({"name": name, **make()})
            self._keep()
        except Exception as error:
            self.fail(name, error)
        if len(self.errors) > failed:
            self.release()

    def omits(self, name: str) -> bool:
        """Whether nothing is to be done for it: it was dealt with, or there is no time left, which is noted."""
        if name in self.done:
            return True
        if self.late:
            self.leave_out(name, "no time left")
            return True
        return False

    def release(self) -> None:
        """Gives memory back that nobody uses. Raises DeviceLost where the device is of no use any more: after an access
        outside of its memory, or where a graph was not recorded to its end."""
        if self.device.type != "cuda":
            return
        gc.collect()
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLost(str(error)) from error
        if torch.cuda.current_stream(self.device) != torch.cuda.default_stream(self.device):
            raise DeviceLost("a graph was not recorded to its end")

    def fail(self, name: str, error: BaseException) -> None:
        """Notes what failed, whole."""
        text = "".join(traceback.format_exception(error))
        self.errors.append({"name": name, "error": f"{type(error).__name__}: {error}", "traceback": text})
        self._keep()

    def leave_out(self, name: str, reason: str) -> None:
        """Notes what was not measured, and why."""
        if name in self.done:
            return
        self.left_out.append({"name": name, "reason": reason})
        self._keep()

    def draw(self, seed: int) -> torch.Generator:
        """A generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def to_dict(self) -> Row:
        """Plain JSON."""
        return {"rows": self.rows, "errors": self.errors, "left_out": self.left_out}

    def _keep(self) -> None:
        if self.file is not None:
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self.to_dict()), encoding="utf-8")
            partial.replace(self.file)


@contextmanager
def overlapped(wanted: bool) -> Iterator[None]:
    """Kernels launched in it overlap, or not (`kernels/overlap.py`)."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1" if wanted else "0"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
