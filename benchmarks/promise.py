"""Stepdial against simpler policies on the same engine: one run, one machine, one trace.

`python -m benchmarks.promise [--minutes 25] [--seeds 1 2 3] [--loads 0.5 0.8 1.5 3.0]`

First it measures idle times (which the SLOs follow from), the profiles and the budget that other policies need, and
saturation: the most requests per second for which there is the throughput with `--concurrency` of them at a time. Idle
times and saturation are measured again for every seed and load, because a machine's speed wanders; saturation then with
the requests of that cell, because lengths of a few hundred do not average out. Then all policies serve the same
requests arriving at the same times, Stepdial right away and the others one after the other in an order that changes.
`--minutes` is the whole run's time; it decides how long requests arrive in a cell (policy x load x seed) unless
`--duration` says so. What is still open `--drain` seconds after the last arrival is cut off; requests whose SLO reaches
beyond are not judged, whatever the policy.

Goodput counts answers that are right and within their SLO; a batch answer has none and counts when it is right. The
result file is written after every cell, so a stopped run keeps what it has.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.policies import Policy
from benchmarks.policy_run import Window, closed_loop, cycle_of, in_loop, open_loop
from benchmarks.promise_bars import bars
from benchmarks.promise_report import STEPDIAL, Cell, goodput, judged, metrics, summary
from benchmarks.promise_setup import (
    PROFILE_COUNTS,
    Setup,
    SetupOptions,
    at_present,
    policies_of,
    set_up,
    together,
    tokenizer_of,
)
from benchmarks.promise_trace import EQUIVALENT_TIERS, SHARES, Arrival, Request, requests_of, trace
from deployments.process import for_serving
from engine.engine import Engine
from engine.plan import AR

WARM_SEED = 2_000_003
WARM_REQUESTS = 256
WARM_CLIENTS = 3
REFERENCE_CONCURRENCY = 32
PER_SEED_S = 42.0
"""What a seed takes besides its loads: engines, warming up, AR's own answers."""
PER_LOAD_S = 14.0
"""What a load takes besides its cells: the machine's present speed."""
LEAST_DURATION_S = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, judges and writes."""
    options = _options(arguments)
    begun = perf_counter()
    factors = dict(zip(("realtime", "interactive", "standard"), options.factors, strict=True))
    setup = set_up(
        SetupOptions(
            model=options.model,
            kv_tokens=options.kv_tokens,
            factors=factors,
            margin_tokens=options.margin_tokens,
            tightest=options.tightest,
            prompts=options.setup_prompts,
            window_s=options.setup_window,
            concurrency=options.concurrency,
            tuned_block=options.tuned_block,
            saturation=options.saturation,
            profile_counts=options.profile_counts,
        )
    )
    for_serving(beside_an_engine=True)
    run = Run(options, setup)
    duration_s = options.duration or run.duration_within(options.minutes * 60 - (perf_counter() - begun))
    print(f"set up in {perf_counter() - begun:.0f} s; requests arrive for {duration_s:.1f} s in each of "
          f"{run.cell_count} cells", flush=True)  # fmt: skip
    try:
        for seed in options.seeds:
            run.one_seed(seed, duration_s)
    except KeyboardInterrupt:
        print("stopped; the result file has the cells so far")
    run.write()
    for bar in bars(run.cells, run.ar_right):
        print(f"{'pass' if bar.passed else 'FAIL'}  {bar.text}")
    print(f"{perf_counter() - begun:.0f} s in all")


class Run:
    """The cells so far."""

    def __init__(self, options: argparse.Namespace, setup: Setup) -> None:
        self.options = options
        self.setup = setup
        self.cells: list[Cell] = []
        self.rows: list[dict[str, Any]] = []
        self.ar_right: dict[tuple[int, int], bool] = {}
        self.present: list[dict[str, Any]] = []

    @property
    def cell_count(self) -> int:
        options = self.options
        policies = len(options.policies) + len(options.admission)
        return policies * len(options.loads) * len(options.seeds)

    def duration_within(self, left_s: float) -> float:
        """Seconds of arrivals per cell so that all cells fit into `left_s`, each with its drain."""
        options = self.options
        besides_s = (PER_SEED_S + PER_LOAD_S * len(options.loads)) * len(options.seeds)
        per_cell_s: float = (left_s - besides_s) / self.cell_count
        drain_s: float = options.drain
        return max(LEAST_DURATION_S, per_cell_s - drain_s)

    def one_seed(self, seed: int, duration_s: float) -> None:
        """All policies at all loads on one seed's requests, with fresh engines."""
        options = self.options
        made = policies_of(self.setup, options.policies, options.admission)
        tokenizer = tokenizer_of(made[STEPDIAL][0])
        order = random.Random(seed)
        try:
            warm_requests = cycle_of(requests_of(tokenizer, self.setup.slos, WARM_SEED), WARM_REQUESTS)
            for engine, policy in made.values():
                if policy.learns:
                    in_loop(closed_loop(engine, policy, warm_requests, WARM_CLIENTS, Window(0.0, options.warm)))
            for load in options.loads:
                count = ceil(load * self.setup.saturation * duration_s)
                setup = at_present(self.setup, cycle_of(requests_of(tokenizer, self.setup.slos, seed), count))
                self.present.append(
                    {
                        "seed": seed,
                        "load": load,
                        "saturation_requests_per_s": setup.saturation,
                        "idle_ms": asdict(setup.slos.idle),
                    }
                )
                print(f"seed {seed} {load:4.0%} of {setup.saturation:.1f} requests/s", flush=True)
                arrivals = trace(requests_of(tokenizer, setup.slos, seed), load * setup.saturation, duration_s, seed)
                others = [name for name in made if name != STEPDIAL]
                order.shuffle(others)
                # Its promises are about the saturation that was measured just now; minutes later it is another.
                for name in [STEPDIAL, *others]:
                    self._one_cell(
                        *made[name], Cell(name, load, seed, duration_s, duration_s + options.drain, []), arrivals
                    )
            self._ask_ar(made["ar"][0] if "ar" in made else made[STEPDIAL][0], seed)
        finally:
            for engine, policy in made.values():
                engine.stop()
                policy.close()

    def _one_cell(self, engine: Engine, policy: Policy, cell: Cell, arrivals: Sequence[Arrival]) -> None:
        cell.outcomes.extend(in_loop(open_loop(engine, policy, arrivals, cell.end_s)))
        self.cells.append(cell)
        self.rows.append(metrics(cell))
        show(cell)
        self.write(whole=False)

    def _ask_ar(self, engine: Engine, seed: int) -> None:
        """AR's own answers to what Stepdial answered in the AR-equivalent tiers."""
        asked: dict[int, Request] = {
            one.request.index: one.request
            for cell in self.cells
            if cell.policy == STEPDIAL and cell.seed == seed
            for one in cell.outcomes
            if one.request.tier in EQUIVALENT_TIERS and one.latency_ms is not None
        }
        requests = list(asked.values())
        for request, got in zip(requests, together(engine, AR, requests, REFERENCE_CONCURRENCY), strict=True):
            self.ar_right[seed, request.index] = got.text.strip() == request.answer.strip()
        self.write()

    def write(self, whole: bool = True) -> None:
        """The result file with all cells so far; `whole`: with what is made of them, intervals and bars."""
        options = self.options
        report = {
            "settings": {
                "loads": options.loads,
                "seeds": options.seeds,
                "drain_s": options.drain,
                "warm_s": options.warm,
                "tier_shares": dict(SHARES),
                "kv_tokens": options.kv_tokens,
            },
            "measured_first": self.setup.measured,
            "measured_before": self.present,
            **(self._made_of_all() if whole else {}),
            "cells": self.rows,
        }
        write_report(options, report)

    def _made_of_all(self) -> dict[str, Any]:
        kept = [{"bar": bar.text, "passed": bar.passed} for bar in bars(self.cells, self.ar_right)]
        return {**summary(self.cells, self.ar_right), "bars": kept}


def show(cell: Cell) -> None:
    """One line about a cell: goodput, refusals, and attainment of admitted requests by tier."""
    rows = judged(cell)
    refused = sum(one.refused is not None for one in rows)
    parts = []
    for tier in SHARES:
        admitted = [one for one in rows if one.request.tier == tier and one.refused is None]
        reached = f"{sum(one.in_time for one in admitted) / len(admitted):4.0%}" if admitted else "   -"
        parts.append(f"{tier} {reached}")
    print(
        f"seed {cell.seed} {cell.load:4.0%} {cell.policy:34} goodput {goodput(cell):6.2f}/s  "
        f"refused {refused:4} of {len(rows):4}  in time: {', '.join(parts)}",
        flush=True,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    from benchmarks.promise_setup import POLICIES

    parser = command_parser("promise", __doc__, model=True)
    parser.add_argument("--minutes", type=float, default=25, help="of the whole run (default 25)")
    parser.add_argument("--duration", type=float, help="seconds of arrivals per cell instead")
    parser.add_argument("--drain", type=float, default=3.0, help="seconds after the last arrival until the cut")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.5, 3.0], help="shares of saturation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument(
        "--admission", nargs="*", choices=POLICIES[1:], default=[],
        help="policies to run a second time with deadlines and the engine's admission",
    )  # fmt: skip
    parser.add_argument("--warm", type=float, default=4.0, help="seconds of warming up for policies that learn")
    parser.add_argument(
        "--factors", type=float, nargs=3, default=[2.0, 4.0, 10.0], metavar=("REALTIME", "INTERACTIVE", "STANDARD"),
        help="SLOs as multiples of AR's idle latency",
    )  # fmt: skip
    parser.add_argument("--margin-tokens", type=int, default=8, help="added to the right answer's length for the SLO")
    parser.add_argument(
        "--tightest", choices=("ar", "diffusion"), default="ar",
        help="what realtime is measured by: AR, or 4 times a two-step diffusion",
    )  # fmt: skip
    parser.add_argument("--saturation", type=float, help="requests per second; default: measured")
    parser.add_argument("--concurrency", type=int, default=48, help="requests at a time for saturation")
    parser.add_argument("--tuned-block", type=int, default=32, choices=(8, 16, 32), help="of the tuned fixed budget")
    parser.add_argument("--setup-prompts", type=int, default=16, help="prompts of each idle measurement")
    parser.add_argument("--setup-window", type=float, default=1.5, help="seconds of each closed loop before the run")
    parser.add_argument("--profile-counts", type=int, nargs="+", default=list(PROFILE_COUNTS))
    parser.add_argument("--kv-tokens", type=int, default=65_536, help="K/V capacity of each engine")
    options = parsed(parser, arguments)
    if STEPDIAL not in options.policies:
        parser.error(f"--policies must include {STEPDIAL}: the others are compared with it")
    return options


if __name__ == "__main__":
    main()
