"""Tokens per second of the engine, of the released loops, and of the bare model call, in one run on one machine.

`python -m benchmarks.engine_vs_reference [--model DIR] [--concurrency 1 8 32] [--repeats 5]`

- *engine*: `Engine.generate`, as the cluster uses it: its own thread, an asyncio client, closed loop.
- *reference*: the released loops on transformers' Ministral-3 modules with a DynamicCache, one request at a time
  (`reference_loops.py`), on the first of the same prompts.
- *bare*: our layers, head and argmax on contiguous padded K/V (`bare_model.py`), replaying the shapes of every forward
  that the engine ran for the same requests; so it is also what the engine's bookkeeping costs.

The three alternate, repeat by repeat; medians with their spread are printed, then the bars on paired ratios. `auto`
runs on the rungs of the checkpoint's ladder that keep AR's quality, and beside it each of these rungs alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


from benchmarks.command import command_parser, parsed, write_report
from benchmarks.opponents import Bench, Timer
from benchmarks.workload import auto_ladder, prompts_of
from engine.plan import AR, Decoding, Plan, Rung, diffusion, self_speculation

MODES: dict[str, Rung] = {
    "ar": AR,
    "diffusion-threshold-0.9": diffusion(32, None, 0.9),
    "diffusion-8-steps": diffusion(32, 8),
    "self-speculation-32": self_speculation(32),
}
REFERENCE_PROMPTS = 3
AUTO_ROUNDS = 4


@dataclass
class Measured:
    """One mode at one concurrency: tokens per second of every repeat, and where the engine's time went.

    Attributes:
        cpu: the same per second of CPU instead of wall clock, which other processes of the machine disturb less.
        split_ms: CPU milliseconds of a forward by part of the engine.
    """

    engine: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"engine": [], "reference": [], "bare": []})
    forwards: int = 0
    tokens: int = 0
    split_ms: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, tokens: int, timer: Timer) -> None:
        """One run of `engine`, `reference` or `bare`."""
        getattr(self, name).append(tokens / timer.wall_s)
        self.cpu[name].append(tokens / timer.cpu_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, judges and writes."""
    options = _options(arguments)
    bench = Bench(options.model, options.threads, options.max_tokens)
    prompts = prompts_of(bench.engine, max(16, *options.concurrency), options.seed, options.max_tokens)
    ladder = bench.calibrated(auto_ladder(bench.engine.ladder), prompts[:8])
    plans = {name: Plan(ladder=(rung,)) for name, rung in MODES.items() if not options.modes or name in options.modes}
    rungs = {f"rung {rung_name(rung)}": Plan(ladder=(rung,)) for rung in ladder}
    results: dict[str, dict[int, Measured]] = {}
    print("tokens/s: median (least to most; per second of CPU)")
    for concurrency in options.concurrency:
        chosen = (
            prompts[: max(options.prompts_at_1, 2 * concurrency)]
            if concurrency > 1
            else prompts[: options.prompts_at_1]
        )
        for name, plan in plans.items():
            results.setdefault(name, {})[concurrency] = measure(bench, plan, chosen, concurrency, options.repeats)
            _show(name, concurrency, results[name][concurrency])
        if options.auto:
            measured = measure_auto(
                bench, {"auto": Plan(ladder=ladder), **rungs}, chosen, concurrency, options.auto_repeats
            )
            for name, one in measured.items():
                results.setdefault(name, {})[concurrency] = one
                _show(name, concurrency, one)
    bench.engine.stop()
    bars = judge(results)
    for text, passed in bars:
        print(f"{'pass' if passed else 'FAIL'}  {text}")
    report = {
        "results": [
            {"mode": name, "concurrency": at, **_numbers(one)}
            for name, per in results.items()
            for at, one in per.items()
        ],
        "bars": [{"bar": text, "passed": passed} for text, passed in bars],
    }
    write_report(options, report)


def measure(bench: Bench, plan: Plan, prompts: Sequence[list[int]], concurrency: int, repeats: int) -> Measured:
    """Engine, bare call and reference, alternating."""
    one = Measured()
    bench.run_engine(plan, prompts[:2], 1)
    forwards, one.split_ms = bench.record(plan, prompts, concurrency)
    bench.run_bare(forwards[:3])
    one.forwards = len(forwards)
    for _ in range(repeats):
        with Timer() as timer:
            one.tokens = bench.run_engine(plan, prompts, concurrency)
        one.add("engine", one.tokens, timer)
        with Timer() as timer:
            bench.run_bare(forwards)
        one.add("bare", one.tokens, timer)
        with Timer() as timer:
            tokens = bench.run_reference(plan.first, prompts[:REFERENCE_PROMPTS])
        one.add("reference", tokens, timer)
    return one


def measure_auto(
    bench: Bench, plans: dict[str, Plan], prompts: Sequence[list[int]], concurrency: int, repeats: int
) -> dict[str, Measured]:
    """`auto` beside each single rung of its ladder, alternating, in another order every time.

    Every prompt is asked `AUTO_ROUNDS` times in a run, so that most of it has its full concurrency.
    """
    measured = {name: Measured() for name in plans}
    prompts = list(prompts) * AUTO_ROUNDS
    for plan in plans.values():
        bench.run_engine(plan, prompts[: 2 * concurrency], concurrency)
    names = list(plans)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            one, plan = measured[name], plans[name]
            with Timer() as timer:
                one.tokens = bench.run_engine(plan, prompts, concurrency)
            one.add("engine", one.tokens, timer)
    return measured


def judge(results: dict[str, dict[int, Measured]]) -> list[tuple[str, bool]]:
    """The bars, on medians of ratios of what ran side by side: a machine's speed changes for seconds at a time."""
    bars: list[tuple[str, bool]] = []

    def paired(text: str, mine: Sequence[float], others: Sequence[float], least: float) -> None:
        ratios = [one / other for one, other in zip(mine, others, strict=True)]
        value = statistics.median(ratios)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        bars.append((f"{text}: {value:.2f} ({spread}; at least {least})", value >= least))

    for name in MODES:
        for concurrency, one in results.get(name, {}).items():
            if concurrency == 1:
                paired(f"{name} at 1 against the released loop", one.engine, one.reference, 1.0)
            if name == "ar" and concurrency == 32:
                paired(f"{name} at 32 against the released loop", one.engine, one.reference, 6.0)
            if name != "ar" and concurrency in (8, 32):
                paired(f"{name} at {concurrency} against the bare model call", one.engine, one.bare, 0.85)
    for concurrency, one in results.get("auto", {}).items():
        single = {
            name: per[concurrency].engine
            for name, per in results.items()
            if name.startswith("rung ") and concurrency in per
        }
        best = max(single, key=lambda name: statistics.median(single[name]))
        paired(f"auto at {concurrency} against {best}", one.engine, single[best], 0.95)
    return bars


def rung_name(rung: Rung) -> str:
    """A short name: mode, block length, and budget and threshold of diffusion."""
    if rung.decoding is Decoding.AR:
        return "ar"
    if not rung.is_diffusion:
        return f"self-speculation {rung.block_length}"
    return f"diffusion {rung.block_length} K {rung.refinement_steps} threshold {rung.threshold} audit {rung.audit}"


def _numbers(one: Measured) -> dict[str, Any]:
    numbers: dict[str, Any] = {"tokens": one.tokens, "forwards": one.forwards, "cpu_ms_per_forward": one.split_ms}
    for name in ("engine", "reference", "bare"):
        values = getattr(one, name)
        if values:
            numbers[name] = {
                "tokens_per_s": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "runs": [round(value, 1) for value in values],
                "tokens_per_cpu_s": statistics.median(one.cpu[name]),
            }
    return numbers


def _show(name: str, concurrency: int, one: Measured) -> None:
    parts = [f"{name:28} at {concurrency:2}"]
    for title in ("engine", "reference", "bare"):
        values = getattr(one, title)
        if values:
            cpu = statistics.median(one.cpu[title])
            parts.append(
                f"{title} {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}; CPU {cpu:.0f})"
            )
    print(", ".join(parts), flush=True)
    if one.split_ms:
        split = ", ".join(f"{part} {value:.2f}" for part, value in one.split_ms.items())
        print(f"    CPU ms a forward: {split}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("engine_vs_reference", __doc__, model=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--auto-repeats", type=int, default=10, help="of `auto` and the single rungs")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of all three")
    parser.add_argument("--max-tokens", type=int, default=96, help="a multiple of 32")
    parser.add_argument("--prompts-at-1", type=int, default=REFERENCE_PROMPTS, help="prompts at concurrency 1")
    parser.add_argument("--modes", nargs="*", choices=list(MODES), help="default: all")
    parser.add_argument("--auto", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=11, help="of the prompts")
    return parsed(parser, arguments)


if __name__ == "__main__":
    main()
