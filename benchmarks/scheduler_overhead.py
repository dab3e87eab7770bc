"""What scheduling costs: microseconds per forward of the engine's own decisions, with deadlines everywhere.

`python -m benchmarks.scheduler_overhead [--sequences 8 64 256] [--steps 400]`

Everything above the executor is the engine's (`EngineCore`); the time of a forward comes from a clock that only
forwards move and its logits are drawn, so that thousands of forwards with many sequences take seconds. Measured is the
part of `step` that decides: cutting what is late, admission, what deadlines ask for, rungs at borders, and the slots of
the forward with their pages. The same parts are then timed beside real forwards of the checkpoint, for their share.
The bar is on the decisions alone (`DECISIONS`): without canvases, pages and segments. Times are CPU of the thread,
which other processes disturb less; wall-clock p95 is shown beside them.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Sequence
from time import perf_counter, perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.policy_run import new_engine
from benchmarks.workload import auto_ladder
from engine import core as core_module
from engine import scheduler
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.events import Finished
from engine.executor import Executor
from engine.kv_cache import PagePool
from engine.plan import Plan
from engine.request import GenerationOptions

if TYPE_CHECKING:
    from torch import Tensor

    from engine.batch import ForwardBatch, Segment
    from engine.engine import Engine
    from engine.plan import Rung
    from engine.sequence import Sequence as EngineSequence

PARTS = ("cut late", "admit", "deadlines and prices", "rungs at borders", "slots and pages")
INSIDE = ("choosing rungs", "sharing slots")
"""Of `rungs at borders` and `slots and pages` the pure decisions alone; the rest makes canvases, wants and segments."""
DECISIONS = ("deadlines and prices", *INSIDE)
"""The scheduler: what deadlines ask for, which rungs follow, and who gets the slots."""
BAR_US = 1000.0
BAR_SEQUENCES = 256
OUTPUT_TOKENS = 96
PROMPT_TOKENS = (24, 64, 140)
AGREEMENT = 0.9
"""How often a drawn draft token is the one that AR would choose."""
LOOSENESS = (2.0, 8.0)
"""Deadlines, as multiples of the time that AR takes when all sequences ride in every forward."""
P = ParamSpec("P")
T = TypeVar("T")


class DrawnExecutor(Executor):
    """An executor whose forwards take what a `ForwardCost` says, on a clock of its own, and whose logits are drawn."""

    def __init__(self, real: Executor, cost: ForwardCost, seed: int) -> None:
        # Nothing of its own: what the real one lays out is never computed.
        self.model, self.kv, self.page_size = real.model, real.kv, real.page_size
        self.keeps_logits = True
        self._real = real
        self.cost = cost
        self.now_s = 0.0
        self._rng = np.random.default_rng(seed)
        self._sequences = 0

    def batch(self, segments: list[Segment]) -> ForwardBatch:
        self._sequences = len(segments)
        return self._real.batch(segments)

    def run(self, batch: ForwardBatch) -> Tensor:
        self.now_s += self.cost.seconds(batch.query_tokens, batch.context_tokens, self._sequences)
        # Small ids are special; every other token is as good as another.
        vocabulary = self.model.config.vocab_size
        agreed, others = vocabulary - 1, self._rng.integers(vocabulary // 2, vocabulary - 1, batch.wanted)
        ids = np.where(self._rng.random(batch.wanted) < AGREEMENT, agreed, others)
        logits = torch.zeros(batch.wanted, vocabulary)
        logits[torch.arange(batch.wanted), torch.from_numpy(ids)] = 6.0
        return logits


class PartTimer:
    """Times of the deciding parts of each step, nanoseconds, thread CPU and wall clock."""

    def __init__(self, core: EngineCore) -> None:
        self.cpu: list[dict[str, int]] = []
        self.wall: list[int] = []
        self._now: dict[str, int] = {}
        self._wall_now = 0
        self.core = core
        for owner, name, part in (
            (core, "_cut_late", "cut late"),
            (core, "_admit", "admit"),
            (core, "_look_ahead", "deadlines and prices"),
            (core, "_open_borders", "rungs at borders"),
            (core, "_schedule", "slots and pages"),
            (core.outlook, "next_blocks", "choosing rungs"),
            (core_module, "share_slots", "sharing slots"),
        ):
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def step(self) -> list[EngineSequence]:
        """One forward; returns the sequences that ended with it."""
        self._now, self._wall_now = dict.fromkeys(PARTS + INSIDE, 0), 0
        events = self.core.step()
        self.cpu.append(self._now)
        self.wall.append(self._wall_now)
        return [sequence for sequence, event in events if isinstance(event, Finished)]

    def close(self) -> None:
        """Leaves the module as it was; the core is thrown away with its timers."""
        setattr(core_module, "share_slots", scheduler.share_slots)  # noqa: B010

    def forget(self) -> None:
        """Drops what was measured so far."""
        self.cpu.clear()
        self.wall.clear()

    def _timed(self, name: str, call: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            wall, cpu = perf_counter_ns(), thread_time_ns()
            result = call(*args, **kwargs)
            self._now[name] += thread_time_ns() - cpu
            if name in PARTS:
                self._wall_now += perf_counter_ns() - wall
            return result

        return timed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, judges and writes."""
    options = _options(arguments)
    begun = perf_counter()
    engine = new_engine(options.model, options.kv_tokens)
    rows = []
    print("CPU microseconds of a forward: p50 by part, then p50 and p95 of the decisions and of all parts", flush=True)
    for count in options.sequences:
        row = drawn(engine, count, options.steps, options.seed)
        if options.real_steps:
            row |= beside_forwards(engine, count, options.real_steps, options.seed)
        rows.append(row)
        _show(row)
    bars = judge(rows)
    for text, passed in bars:
        print(f"{'pass' if passed else 'FAIL'}  {text}")
    print(f"{perf_counter() - begun:.0f} s in all")
    report = {
        "settings": {"steps": options.steps, "real_steps": options.real_steps, "seed": options.seed},
        "results": rows,
        "bars": [{"bar": text, "passed": passed} for text, passed in bars],
    }
    write_report(options, report)


def drawn(engine: Engine, count: int, steps: int, seed: int) -> dict[str, Any]:
    """The decisions with `count` open sequences, on drawn logits."""
    cost = ForwardCost(base_s=2.5e-3, per_sequence_s=2.5e-4, per_token_s=1e-4, per_context_s=1e-7)
    executor = DrawnExecutor(engine.core.executor, cost, seed)
    timer = PartTimer(_core(engine, executor, cost, lambda: executor.now_s))
    _run(engine, timer, count, steps, cost, lambda: executor.now_s, seed)
    timer.close()
    return {"sequences": count, **_numbers(timer)}


def beside_forwards(engine: Engine, count: int, steps: int, seed: int) -> dict[str, Any]:
    """The decisions as a share of real steps of the checkpoint, whose time is `busy_s` less the decisions."""
    cost = engine.cost_model.cost
    core = _core(engine, engine.core.executor, cost, perf_counter)
    timer = PartTimer(core)
    _run(engine, timer, count, steps, cost, perf_counter, seed)
    timer.close()
    decisions_s = sum(timer.wall) / 1e9
    return {
        "real_forward_ms": core.counters.forward_s / core.counters.forwards * 1e3,
        "share_of_step": decisions_s / core.counters.busy_s,
    }


def _core(engine: Engine, executor: Executor, cost: ForwardCost, clock: Callable[[], float]) -> EngineCore:
    """A core of its own over the engine's weights and pages, with nothing in it."""
    pool = PagePool(engine.core.pool.total, engine.core.pool.page_size, False)
    config = EngineConfig(max_sequences=engine.config.max_sequences)
    return EngineCore(executor, pool, ForwardCostModel(prior=cost), config, engine.model_config.mask_token_id, clock)


def _run(
    engine: Engine,
    timer: PartTimer,
    count: int,
    steps: int,
    cost: ForwardCost,
    clock: Callable[[], float],
    seed: int,
) -> None:
    """Steps with `count` sequences open, each replaced when it ends; measured once the first ones have read prompts."""
    rng = random.Random(seed)
    ladder = auto_ladder(engine.ladder)
    whole_s = OUTPUT_TOKENS * cost.seconds(count, 100 * count, count)
    core = timer.core

    def add() -> EngineSequence:
        sequence = _sequence(engine, ladder, whole_s * rng.uniform(*LOOSENESS), clock(), rng)
        core.add(sequence)
        return sequence

    first = [add() for _ in range(count)]
    while any(not sequence.has_pending for sequence in first):
        for _ in timer.step():
            add()
    timer.forget()
    core.counters.busy_s = core.counters.forward_s = 0.0
    core.counters.forwards = 0
    for _ in range(steps):
        for _ in timer.step():
            add()


def _sequence(
    engine: Engine, ladder: tuple[Rung, ...], slo_s: float, now_s: float, rng: random.Random
) -> EngineSequence:
    vocabulary = engine.model_config.vocab_size
    prompt = [rng.randrange(vocabulary // 2, vocabulary) for _ in range(rng.choice(PROMPT_TOKENS))]
    options = GenerationOptions(
        max_tokens=OUTPUT_TOKENS, temperature=0, seed=0, ignore_eos=True, latency_slo_ms=slo_s * 1e3
    )
    return engine.intake.sequence("measured", prompt, options, Plan(ladder=ladder), now_s)


def _numbers(timer: PartTimer) -> dict[str, Any]:
    whole = [sum(parts[name] for name in PARTS) / 1e3 for parts in timer.cpu]
    decisions = [sum(parts[name] for name in DECISIONS) / 1e3 for parts in timer.cpu]
    return {
        "steps": len(whole),
        "parts_us": {name: float(np.median([parts[name] for parts in timer.cpu])) / 1e3 for name in PARTS + INSIDE},
        "decisions_p50_us": float(np.quantile(decisions, 0.5)),
        "decisions_p95_us": float(np.quantile(decisions, 0.95)),
        "p50_us": float(np.quantile(whole, 0.5)),
        "p95_us": float(np.quantile(whole, 0.95)),
        "wall_p95_us": float(np.quantile(timer.wall, 0.95)) / 1e3,
    }


def judge(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The decisions take less than a millisecond with 256 sequences."""
    bars = []
    for row in rows:
        if row["sequences"] == BAR_SEQUENCES:
            taken_us = row["decisions_p50_us"]
            text = f"decisions with {BAR_SEQUENCES} sequences: {taken_us:.0f} us (below {BAR_US:.0f})"
            bars.append((text, taken_us < BAR_US))
    return bars


def _show(row: dict[str, Any]) -> None:
    parts = ", ".join(f"{name} {row['parts_us'][name]:.0f}" for name in PARTS)
    inside = ", ".join(f"{name} {row['parts_us'][name]:.0f}" for name in INSIDE)
    parts += f" (of these {inside})"
    text = f"{row['sequences']:4} sequences: {parts}; "
    text += f"decisions {row['decisions_p50_us']:.0f}, p95 {row['decisions_p95_us']:.0f}; "
    text += f"all {row['p50_us']:.0f}, p95 {row['p95_us']:.0f}"
    text += f" (wall clock p95 {row['wall_p95_us']:.0f})"
    if "share_of_step" in row:
        text += f"; in all {row['share_of_step']:.1%} of a step whose forward takes {row['real_forward_ms']:.1f} ms"
    print(text, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("scheduler_overhead", __doc__, model=True)
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--steps", type=int, default=400, help="forwards to measure on drawn logits")
    parser.add_argument("--real-steps", type=int, default=30, help="real forwards to measure beside; 0 = none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kv-tokens", type=int, default=131_072)
    return parsed(parser, arguments)


if __name__ == "__main__":
    main()
