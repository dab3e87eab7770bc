"""Cells measured by several processes, with a progress bar, up to a deadline."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from engine.errors import StepdialError

if TYPE_CHECKING:
    from engine.calibration.cells import Split
    from engine.calibration.measuring import Job
    from engine.calibration.prompts import Prompt
    from engine.engine import Engine

Note = tuple[int, str, str, int]
"""(process id, `begin`, `advance` or `end`, the cell's name, answers)."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker needs.

    Attributes:
        model: checkpoint directory. dtype, quantization: the engine's. max_load: most prompts at the same time.
        kv_tokens: K/V capacity that so many prompts need. threads: torch threads of a worker.
    """

    model: Path
    prompts: Mapping[Split, tuple[Prompt, ...]]
    dtype: str
    quantization: str
    max_load: int
    kv_tokens: int
    threads: int


_engine: Engine
_settings: WorkerSettings
_notes: Queue[Note]
_stop: Event


def measure_all(jobs: Sequence[Job], settings: WorkerSettings, workers: int, title: str) -> None:
    """Measures `jobs` in their order; what a deadline leaves over stays incomplete in its file.

    Raises whatever a worker raised, and StepdialError where one was killed.
    """
    # Threads that spin while they wait would take the other workers' cores. Results name it: set without jobs too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    notes: Queue[Note] = context.Queue()
    stop = context.Event()
    with (
        _Bars(title, sum(job.cell.answers for job in jobs)) as bars,
        ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (settings, notes, stop)) as pool,
    ):
        left: set[Future[None]] = {pool.submit(_measure, job) for job in jobs}
        try:
            while left:
                with suppress(queue.Empty):
                    bars.show(notes.get(timeout=0.2))
                done = {future for future in left if future.done()}
                for future in done:
                    future.result()
                left -= done
            while True:
                bars.show(notes.get(timeout=0.2))
        except queue.Empty:
            return
        except BrokenProcessPool:
            raise StepdialError(
                "a worker process ended by itself (killed for its memory?); its rows are kept: run the same "
                "command again, with fewer workers or smaller loads"
            ) from None
        finally:
            stop.set()
            for future in left:
                future.cancel()


def _start(settings: WorkerSettings, notes: Queue[Note], stop: Event) -> None:
    """A worker's engine. Prefixes are not shared between answers, or the first would pay for the others."""
    global _engine, _settings, _notes, _stop
    # Ctrl-C reaches every process; the one that waits tells the workers to stop after an answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from engine.config import EngineConfig
    from engine.engine import Engine

    torch.set_num_threads(settings.threads)
    config: dict[str, Any] = {
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "threads": settings.threads,
        "max_sequences": settings.max_load,
        "kv_tokens": settings.kv_tokens,
        "prefix_reuse": False,
    }
    # Without the saved ladder: one of other weights is refused, and must not stand in the way of a new one.
    _engine = Engine.from_pretrained(settings.model, EngineConfig(**config), ladder=())
    _settings, _notes, _stop = settings, notes, stop


def _measure(job: Job) -> None:
    """Measures one cell in a worker, unless its time is over."""
    from engine.calibration.measuring import measure

    if time.time() > job.deadline_s or _stop.is_set():
        return
    cell, process = job.cell, os.getpid()
    _notes.put((process, "begin", cell.name, cell.answers))
    measure(
        _engine,
        job,
        _settings.prompts[cell.split],
        lambda count: _notes.put((process, "advance", "", count)),
        _stop.is_set,
    )
    _notes.put((process, "end", cell.name, cell.answers))


class _Bars:
    """All answers in one bar and each worker's cell in another; without a terminal one line per finished cell."""

    def __init__(self, title: str, answers: int) -> None:
        columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.terminal = sys.stderr.isatty()
        self.bars = Progress(*columns, console=Console(stderr=True), disable=not self.terminal)
        self.total = self.bars.add_task(title, total=answers)
        self.of_process: dict[int, TaskID] = {}
        self.begun: dict[int, float] = {}

    def __enter__(self) -> _Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, note: Note) -> None:
        process, what, name, answers = note
        if what == "begin":
            self.begun[process] = time.monotonic()
            if process not in self.of_process:
                self.of_process[process] = self.bars.add_task(name)
            self.bars.reset(self.of_process[process], total=answers, description=name)
        elif what == "advance":
            self.bars.advance(self.total, answers)
            self.bars.advance(self.of_process[process], answers)
        elif not self.terminal:
            print(f"{name}: {answers} answers, {time.monotonic() - self.begun[process]:.1f} s", file=sys.stderr)
