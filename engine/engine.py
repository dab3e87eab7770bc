"""The engine: an asyncio face over the loop that runs in a thread of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.checkpoint.config import ModelConfig
from engine.checkpoint.identity import check_identity, quantization_of
from engine.checkpoint.tokenizer import Tokenizer
from engine.config import EngineConfig, Quantization
from engine.core import EngineCore
from engine.cost_model import ForwardCostModel
from engine.errors import CheckpointError, EngineStopped, QueueFull, RankFailed
from engine.events import Event, Finished
from engine.executor import Executor
from engine.intake import Intake
from engine.kv_cache import PagePool
from engine.loading import load_executor
from engine.picture import Picture
from engine.plan import Plan, Rung
from engine.request import GenerationOptions
from engine.sequence import Sequence

if TYPE_CHECKING:
    from engine.admission import Newcomer
    from engine.group.leader import Launcher
    from engine.stats import EngineStats

log = logging.getLogger("stepdial.engine")
LADDER_FILE = "ladder.json"
MAX_RUNGS = 8
FAILED_STOP_S = 5.0
"""Seconds that `stop` waits for the loop of an engine that has failed."""


class _Stream:
    """Where the loop leaves a sequence's events for the coroutine that reads them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()


class Engine:
    """Serves one checkpoint, on one device or on a tensor-parallel group of them of which this process is rank 0.

    `from_pretrained` loads; `start` runs the loop in a thread; `generate` streams events; `stop` ends it, and `close`
    ends the other ranks too. Without `start`, `run_sync` drives the same loop from the caller's thread (scripts,
    offline batches).

    Attributes:
        model_config: shapes and special ids. tokenizer: None for checkpoints of bare ids. ladder: the rungs saved
            beside the checkpoint, best first. cost_model: time of a forward, fitted as the engine runs.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: EngineConfig,
        executor: Executor,
        pool: PagePool,
        tokenizer: Tokenizer | None = None,
        ladder: tuple[Rung, ...] = (),
        cost_model: ForwardCostModel | None = None,
    ) -> None:
        smallest = 4 * model_config.block_size
        if config.max_forward_tokens < smallest:
            raise ValueError(
                f"max_forward_tokens is {config.max_forward_tokens}; allowed: at least {smallest} (four blocks)"
            )
        self.model_config = model_config
        self.config = config
        self.tokenizer = tokenizer
        self.ladder = ladder
        self.cost_model = cost_model or ForwardCostModel()
        self.core = EngineCore(executor, pool, self.cost_model, config, model_config.mask_token_id)
        self.picture = Picture(self.core)
        capacity = min(model_config.max_position_embeddings, pool.total * pool.page_size)
        self.intake = Intake(model_config, config, tokenizer, ladder, capacity)
        self._streams: dict[Sequence, _Stream] = {}
        self._held: list[tuple[Sequence, Event]] = []
        self.core.meanwhile.deliver = self._deliver
        self.core.called = self._called
        self._inbox: deque[tuple[str, Sequence]] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._step_began_s: float | None = None
        self._names = itertools.count()

    @staticmethod
    def from_pretrained(
        path: str | Path,
        config: EngineConfig | None = None,
        ladder: tuple[Rung, ...] | None = None,
        launcher: Launcher | None = None,
    ) -> Engine:
        """Loads a checkpoint directory. Raises CheckpointError with every problem found, RankFailed when another rank
        of the group cannot start.

        Args:
            ladder: rungs to use instead of those saved beside the checkpoint.
            launcher: starts the other ranks where `config.tp` is above 1; None = as child processes.
        """
        config = config or EngineConfig()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        path = Path(path)
        model_config = ModelConfig.from_dir(path)
        executor = load_executor(path, model_config, config, launcher)
        try:
            page_size = executor.page_size
            engine = Engine(
                model_config,
                config,
                executor,
                PagePool(executor.kv.shape[1] // page_size, page_size, config.prefix_reuse),
                Tokenizer.from_dir(path),
                load_ladder(path, config.quantization, config.calibration) if ladder is None else ladder,
                load_cost_model(config.cost_model),
            )
        except BaseException:
            executor.close()
            raise
        if executor.group is not None:
            executor.group.watch(engine.fail)
        return engine

    def start(self) -> None:
        """Starts the loop's thread. Does nothing if it runs."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="stepdial-engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the loop; streams that are open end with EngineStopped. Saves the cost model where configured."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            self._wake.set()
            # A forward that waits for a rank that is gone may never end.
            thread.join(None if self._failure is None else FAILED_STOP_S)
        if self.config.cost_model is not None:
            Path(self.config.cost_model).write_text(json.dumps(self.cost_model.to_dict()), encoding="utf-8")

    def close(self) -> None:
        """`stop`, and the end of the other ranks: the engine cannot be started again."""
        self.stop()
        self.core.executor.close()

    def fail(self, error: RankFailed) -> None:
        """Another rank has ended: ends all streams with EngineStopped, whatever the loop is doing."""
        if self._failure is None:
            self._failure = error
        self._wake.set()
        self._end_streams(EngineStopped(str(error)))

    @property
    def running(self) -> bool:
        """Whether the loop's thread is alive and well."""
        return self._thread is not None and self._thread.is_alive() and self._failure is None

    @property
    def in_step_s(self) -> float:
        """For how long the loop has been in its present step, 0 between two: a device that hangs shows here."""
        began_s = self._step_began_s
        return 0.0 if began_s is None else self.core.clock() - began_s

    async def generate(
        self,
        prompt_token_ids: Seq[int],
        options: GenerationOptions | None = None,
        plan: Plan | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Streams `Delta` events and one `Finished`; leaving the stream early frees the sequence within one forward.

        Raises InvalidRequest before any forward, QueueFull, EngineStopped.
        """
        self._check_alive()
        if len(self.core.waiting) + len(self._inbox) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests are waiting; try again later")
        sequence = self._sequence(prompt_token_ids, options, plan, request_id)
        stream = _Stream(asyncio.get_running_loop())
        self._streams[sequence] = stream
        try:
            # Only now is it certain that a loop which ends meanwhile ends this stream too.
            self._check_alive()
            self._post("add", sequence)
            while True:
                event = await stream.queue.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if self._streams.pop(sequence, None) is not None and sequence.finish_reason is None:
                self._post("cancel", sequence)

    def run_sync(self, requests: Seq[tuple[Seq[int], GenerationOptions, Plan | None]]) -> Iterator[tuple[int, Event]]:
        """Runs all requests in one batch on the caller's thread; yields (index of the request, event).

        For engines whose loop was not started. Raises InvalidRequest on the first bad request, before any forward.
        """
        if self._thread is not None:
            raise RuntimeError("the engine's loop is running; use generate()")
        sequences = [self._sequence(prompt, options, plan, None) for prompt, options, plan in requests]
        index_of = {sequence: index for index, sequence in enumerate(sequences)}
        for sequence in sequences:
            self.core.add(sequence)
        try:
            while not self.core.idle:
                for sequence, event in self.core.step():
                    yield index_of[sequence], event
        finally:
            for sequence in sequences:
                self.core.cancel(sequence)

    def stats(self) -> EngineStats:
        """A snapshot of queue, pages, counters and coefficients."""
        return self.picture.stats(self._arriving())

    def present(self) -> list[Sequence]:
        """All open sequences, those included that the loop has not taken in yet. To read, not to change."""
        return [*self.core.running, *self.core.waiting, *self._arriving()]

    def rung_for(self, newcomer: Newcomer) -> Rung | None:
        """The rung that a new request can start on so that it and all others keep their deadlines, None if on none."""
        return self.picture.rung_for(newcomer, self._arriving())

    def earliest_s(self, newcomer: Newcomer) -> float:
        """The shortest deadline, in seconds from now, with which `rung_for` would let the request in."""
        return self.picture.earliest_s(newcomer, self._arriving())

    def queued_s(self, sequences: Seq[Sequence]) -> float:
        """Predicted seconds of forwards until all of `sequences` are done."""
        return self.core.outlook.backlog(sequences).queue_s

    def _arriving(self) -> list[Sequence]:
        return [sequence for action, sequence in list(self._inbox) if action == "add"]

    def _sequence(
        self, prompt: Seq[int], options: GenerationOptions | None, plan: Plan | None, request_id: str | None
    ) -> Sequence:
        name = request_id or f"sequence-{next(self._names)}"
        return self.intake.sequence(name, prompt, options or GenerationOptions(), plan, self.core.clock())

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise _stopped_by(self._failure)
        if self._thread is None or self._stopping:
            raise EngineStopped("the engine is not running; call start() first")

    def _post(self, action: str, sequence: Sequence) -> None:
        self._inbox.append((action, sequence))
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._stopping and self._failure is None:
                self._read_inbox()
                if self.core.idle:
                    self._deliver()
                    self._wake.wait(timeout=1.0)
                    self._wake.clear()
                else:
                    self._step_began_s = self.core.clock()
                    events = self.core.step()
                    self._step_began_s = None
                    self._held = [*self._held, *events]
                    # Whoever reads them takes the interpreter from this thread. A device would have to wait for that,
                    # so where there is one they are handed over while it runs the next forward.
                    if self.core.idle or self.core.executor.keeps_logits:
                        self._deliver()
            if self._failure is None:
                self._deliver()
                self._end_streams(EngineStopped("the engine was stopped"))
        except BaseException as error:
            log.exception("the engine's loop died")
            self._failure = error
            self._deliver()
            self._end_streams(_stopped_by(error))

    def _called(self) -> bool:
        """Whether the loop has something else to do than to go on."""
        return bool(self._inbox) or self._stopping or self._failure is not None

    def _read_inbox(self) -> None:
        while self._inbox:
            action, sequence = self._inbox.popleft()
            if action == "add":
                self.core.add(sequence)
            else:
                self.core.cancel(sequence)

    def _deliver(self) -> None:
        """Hands the events that are held to their readers, waking each event loop once."""
        events, self._held = self._held, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Event | BaseException]]] = {}
        for sequence, event in events:
            stream = self._streams.get(sequence)
            if stream is not None:
                by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, batch in by_loop.items():
            _call_in(loop, batch)

    def _end_streams(self, error: BaseException) -> None:
        for stream in list(self._streams.values()):
            _call_in(stream.loop, [(stream, error)])


def _call_in(loop: asyncio.AbstractEventLoop, batch: list[tuple[_Stream, Event | BaseException]]) -> None:
    def put() -> None:
        for stream, event in batch:
            stream.queue.put_nowait(event)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:
        # The reader's loop is closed: nobody waits for these events any more.
        log.debug("dropped %d events of a closed loop", len(batch))


def _stopped_by(error: BaseException) -> EngineStopped:
    """What readers of streams are told of the loop's death."""
    return EngineStopped(str(error) if isinstance(error, RankFailed) else f"the engine's loop died: {error!r}")


def load_ladder(
    path: str | Path, quantization: Quantization = "none", calibration: str | Path | None = None
) -> tuple[Rung, ...]:
    """The rungs saved beside a checkpoint, or in the folder `calibration`, best first.

    Empty without a file, and where it was measured with weights of another `quantization`. Raises CheckpointError on a
    bad file, and where a folder is named and has none.
    """
    file = Path(calibration or path) / LADDER_FILE
    if not file.is_file():
        if calibration is not None:
            raise CheckpointError(f"calibration is {str(calibration)!r}, which has no {LADDER_FILE}")
        return ()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        rungs = tuple(Rung.from_dict(entry) for entry in data["rungs"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a ladder: {error!r}") from None
    if not 1 <= len(rungs) <= MAX_RUNGS:
        raise CheckpointError(f"{file} has {len(rungs)} rungs; allowed: 1 to {MAX_RUNGS}")
    check_identity(path, data, file.resolve())
    if (measured := quantization_of(data)) != quantization:
        log.warning("%s was measured with quantization %s, not %s: it is not used", file, measured, quantization)
        return ()
    return rungs


def load_cost_model(file: str | Path | None) -> ForwardCostModel | None:
    """A saved cost model, or None where there is no file yet. Raises CheckpointError on a bad one."""
    if file is None or not Path(file).is_file():
        return None
    try:
        return ForwardCostModel.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a cost model: {error!r}") from None
