"""What every section of the benchmark shares: the device, the time that is left, and rows that may fail alone."""

from __future__ import annotations

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


@dataclass(slots=True)
class Section:
    """One section as it runs: what it is given, and what it has found.

    Attributes:
        tiny: small shapes, for rehearsing where there is no GPU; its figures say nothing about one.
        ceilings: what this machine was measured to do; None where that section did not run.
        ends_s: when the section should end, on `time.monotonic`.
        file: where to keep what there is after every row; None = nowhere.
        rows: finished rows, plain JSON. errors: what failed, with its traceback. left_out: rows for which there was
            no time or no memory, and why.
    """

    device: torch.device
    tiny: bool
    ceilings: Ceilings | None
    ends_s: float
    file: Path | None = None
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
        """Adds the row that `make` gives under `name`. A failure is noted, and what follows goes on."""
        if self.late:
            self.leave_out(name, "no time left")
            return
        try:
            self.rows.append({"name": name, **make()})
            self._keep()
        except Exception as error:
            self.fail(name, error)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def fail(self, name: str, error: BaseException) -> None:
        """Notes what failed, whole."""
        text = "".join(traceback.format_exception(error))
        self.errors.append({"name": name, "error": f"{type(error).__name__}: {error}", "traceback": text})
        self._keep()

    def leave_out(self, name: str, reason: str) -> None:
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
