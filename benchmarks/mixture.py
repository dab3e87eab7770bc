"""The mixture of modes against every single mode, closed loop, at 1 to 64 requests at a time.

`python -m benchmarks.mixture [--concurrency 1 2 4 8 16 32 64] [--repeats 3] [--more 12] [--minutes 30]`

`auto` is Stepdial's own policy for requests without an SLO: the router's plan, then rungs equal to AR that the engine
chooses among at borders. Beside it run, pinned by the requests' own fields and through the same router, AR,
self-speculation at 4, 8, 16 and 32, and the diffusion rungs of the checkpoint's ladder, which are faster because they
give up quality: they are shown, and not part of the bars unless they are equal to AR. Each has an engine of its own,
and all windows of a repeat are open at the same time, the engines taking turns (`benchmarks/turns.py`), because the
machine's speed wanders by more than the bars are wide. Repeats begin at different places in the prompts, the same for
all. After `--repeats` of every mode, those that may yet be the best (`CLOSE`) and `auto` go on for `--more`.
`--minutes` is the whole run's time and decides how long each window is, unless `--seconds` says so. Tokens per second
are the median of the windows, latencies those of all their answers together: a window has few.

Bars: at every concurrency `auto` has at least 95% of the tokens per second of the best single mode (the median over
repeats), with a p95 latency of at most 1.05 times that of the mode that reaches it, over the prompts that both
answered; and somewhere it is above the best.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.policies import Pinned, Policy
from benchmarks.policy_run import Closed, Window, cycle_of, in_loop, warm_engines
from benchmarks.promise_report import rung_name
from benchmarks.promise_setup import tokenizer_of
from benchmarks.promise_trace import Idle, Slos, requests_of
from benchmarks.router_process import RouterProcess
from benchmarks.stepdial_policy import Stepdial
from benchmarks.turns import Turns, window_weight
from engine.engine import load_ladder
from engine.plan import AR, Rung, self_speculation
from engine.request import equivalent_to_ar

AUTO = "auto"
DRAFTS = (4, 8, 16, 32)
PROMPTS = 256
LEAST_SHARE, MOST_P95 = 0.95, 1.05
CLOSE = 0.9
"""Share of the best single mode's tokens per second from which on a mode may be the best after all."""
CONTENDERS = 3.5
"""How many modes are taken to go on, `auto` among them, when windows are sized."""
RAMP = 0.6
"""Seconds before a window opens, per second of the window."""
LEAST_SECONDS = 0.5


@dataclass
class Measured:
    """One mode at one concurrency.

    Attributes:
        lossy: below AR's quality. tokens_per_s: of each window. right: how many answers were. used: rungs, and by how
            many answers.
        latency_ms: of all answers, by the window and the place among its requests, which is the same prompt in all
            modes.
    """

    lossy: bool = False
    tokens_per_s: list[float] = field(default_factory=list)
    latency_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    right: int = 0
    used: dict[str, int] = field(default_factory=dict)

    def add(self, closed: Closed) -> None:
        """One window."""
        window = len(self.tokens_per_s)
        self.tokens_per_s.append(closed.tokens_per_s)
        for one in closed.ended:
            if one.latency_ms is not None:
                self.latency_ms[window, one.request.index] = one.latency_ms
            self.right += one.right
            for entry in one.entries:
                name = rung_name(entry.rung)
                self.used[name] = self.used.get(name, 0) + 1

    def speed_over(self, other: Measured) -> list[float]:
        """Tokens per second over another's, window by window, of those that both have."""
        return [mine / theirs for mine, theirs in zip(self.tokens_per_s, other.tokens_per_s, strict=False)]

    def p95_over(self, other: Measured) -> float:
        """The p95 latency over another's, on what both have answered."""
        both = sorted(self.latency_ms.keys() & other.latency_ms.keys())
        mine, theirs = ([one.latency_ms[key] for key in both] for one in (self, other))
        return quantile(mine, 0.95) / quantile(theirs, 0.95)


def quantile(values: Iterable[float], share: float) -> float:
    """Of at least one value."""
    return float(np.quantile(list(values), share))


Row = dict[str, Measured]
Results = dict[int, Row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, judges and writes."""
    options = _options(arguments)
    begun = perf_counter()
    ladder = load_ladder(options.model)
    modes = single_modes(ladder)
    engines = warm_engines(options.model, options.kv_tokens, 1 + len(modes))
    no_slos = Slos(Idle(0.0, 0.0, 0.0), {})
    requests = cycle_of(requests_of(tokenizer_of(engines[0]), no_slos, options.seed), PROMPTS)
    # No tier is named, so nothing below AR's quality may be used.
    requests = [replace(request, tier="default") for request in requests]
    router = RouterProcess(str(options.model))
    routed = [Stepdial(engine, router, AUTO) for engine in engines]
    policies: list[Policy] = [routed[0]]
    policies += [Pinned(rung_name(rung), rung, policy) for rung, policy in zip(modes, routed[1:], strict=True)]
    equal = {rung.policy() for rung in equivalent_to_ar(ladder)}
    lossy = [False, *(not rung.exact and rung.policy() not in equal for rung in modes)]
    seconds = options.seconds or seconds_of(options, len(policies))
    print(f"windows of {seconds:.1f} s at 1 request at a time; tokens/s: median (least to most), then p95", flush=True)
    turns = Turns(engines)
    results: Results = {}
    try:
        # What Stepdial remembers of lengths and latencies, before the first window.
        first = Window(0.0, seconds, options.least_ended)
        in_loop(turns.closed_loops(dict(enumerate(policies)), requests, 4, first))
        for concurrency in options.concurrency:
            row = {policy.name: Measured(below) for policy, below in zip(policies, lossy, strict=True)}
            window_s = seconds * window_weight(concurrency)
            window = Window(RAMP * window_s, window_s, options.least_ended)
            names = list(row)
            for repeat in range(options.repeats + options.more):
                if repeat == options.repeats:
                    names = contenders(row)
                begins = repeat * PROMPTS // (options.repeats + options.more)
                asked = requests[begins:] + requests[:begins]
                present = {place: policy for place, policy in enumerate(policies) if policy.name in names}
                measured = in_loop(turns.closed_loops(present, asked, concurrency, window))
                for policy, closed in zip(present.values(), measured, strict=True):
                    row[policy.name].add(closed)
            results[concurrency] = row
            _show(concurrency, row)
            _write(options, results, seconds)
    except KeyboardInterrupt:
        print("stopped; the result file has what was complete")
    finally:
        for engine in engines:
            engine.stop()
        router.close()
    for text, passed in judge(results):
        print(f"{'pass' if passed else 'FAIL'}  {text}")
    print(f"{perf_counter() - begun:.0f} s in all")


def single_modes(ladder: Sequence[Rung]) -> list[Rung]:
    """AR, self-speculation at every block length, and the ladder's diffusion rungs."""
    return [AR, *(self_speculation(length) for length in DRAFTS), *(rung for rung in ladder if rung.is_diffusion)]


def seconds_of(options: argparse.Namespace, modes: int) -> float:
    """Of a window at 1 request at a time, so that the run takes its minutes."""
    windows = modes * options.repeats + CONTENDERS * options.more
    windows *= sum(window_weight(clients) for clients in options.concurrency)
    return max(LEAST_SECONDS, (options.minutes * 60 - 20) / (windows * (1 + RAMP)))


def contenders(row: Row) -> list[str]:
    """`auto`, and the single modes of AR's quality that may be the best."""
    best = row[best_single(row)]
    return [
        name for name, one in row.items() if name == AUTO or (not one.lossy and median(one.speed_over(best)) >= CLOSE)
    ]


def best_single(row: Row) -> str:
    """The single mode of AR's quality with the most tokens per second, of those that were measured to the end."""
    names = [name for name, one in row.items() if name != AUTO and not one.lossy]
    most = max(len(row[name].tokens_per_s) for name in names)
    return max(
        (name for name in names if len(row[name].tokens_per_s) == most), key=lambda name: median(row[name].tokens_per_s)
    )


def judge(results: Results) -> list[tuple[str, bool]]:
    """The bars."""
    bars = []
    gains = {}
    for concurrency, row in results.items():
        name = best_single(row)
        best, auto = row[name], row[AUTO]
        share = median(auto.speed_over(best))
        longer = auto.p95_over(best)
        gains[concurrency] = share
        bars.append(
            (
                f"auto at {concurrency}: {share:.1%} of {name}'s tokens/s (at least {LEAST_SHARE:.0%})",
                share >= LEAST_SHARE,
            )
        )
        bars.append((f"auto at {concurrency}: {longer:.2f} of {name}'s p95 (at most {MOST_P95})", longer <= MOST_P95))
    if gains:
        at = max(gains, key=lambda concurrency: gains[concurrency])
        bars.append((f"auto is above the best single mode somewhere: {gains[at]:.1%} of it at {at}", gains[at] > 1))
    return bars


def _write(options: argparse.Namespace, results: Results, seconds: float) -> None:
    settings = {"window_s": seconds, "ramp": RAMP}
    report = {
        "settings": settings | {name: getattr(options, name) for name in ("repeats", "more", "seed")},
        "results": [
            {"concurrency": concurrency, "mode": name, **_numbers(one, row[best_single(row)])}
            for concurrency, row in results.items()
            for name, one in row.items()
        ],
        "bars": [{"bar": text, "passed": passed} for text, passed in judge(results)],
    }
    write_report(options, report)


def _numbers(one: Measured, best: Measured) -> dict[str, Any]:
    speeds, over = one.tokens_per_s, one.speed_over(best)
    return {
        "lossy": one.lossy,
        "windows": len(speeds),
        "tokens_per_s": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "over_best": {"median": median(over), "quartiles": [quantile(over, 0.25), quantile(over, 0.75)]},
        "answers": len(one.latency_ms),
        "p50_ms": quantile(one.latency_ms.values(), 0.5),
        "p95_ms": quantile(one.latency_ms.values(), 0.95),
        "right": one.right / len(one.latency_ms),
        "used": one.used,
    }


def _show(concurrency: int, row: Row) -> None:
    best = best_single(row)
    for name, one in row.items():
        speed = median(one.tokens_per_s)
        mark = " best" if name == best else " lossy" if one.lossy else ""
        print(
            f"{name:28} at {concurrency:2}: {speed:7.0f} ({min(one.tokens_per_s):.0f} to {max(one.tokens_per_s):.0f}), "
            f"{median(one.speed_over(row[best])):.3f} of the best, "
            f"p95 {quantile(one.latency_ms.values(), 0.95):6.0f} ms{mark}",
            flush=True,
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("mixture", __doc__, model=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3, help="windows of every mode")
    parser.add_argument("--more", type=int, default=12, help="windows of those that may be the best, after these")
    parser.add_argument("--minutes", type=float, default=30, help="of the whole run (default 30)")
    parser.add_argument("--seconds", type=float, help="of a window at 1 request at a time instead")
    parser.add_argument("--least-ended", type=int, default=20, help="answers that a window waits for")
    parser.add_argument("--seed", type=int, default=11, help="of the prompts")
    parser.add_argument("--kv-tokens", type=int, default=65_536)
    return parsed(parser, arguments)


if __name__ == "__main__":
    main()
