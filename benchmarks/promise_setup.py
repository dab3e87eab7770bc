"""What the benchmark of the promise measures before it begins: idle times, profiles, a tuned budget, and saturation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.answers import Answer, Ask, answer, answers
from benchmarks.policies import Admitted, ByDeadline, ByLoad, Fixed, Policy
from benchmarks.policy_run import Window, closed_loop, cycle_of, in_loop, new_engine
from benchmarks.promise_trace import BLOCK, Idle, Request, Slos, Tightest, idle_of, requests_of
from benchmarks.router_process import RouterProcess
from benchmarks.stepdial_policy import Stepdial
from deployments.quality import budgets_for
from deployments.warm_up import warm_up
from engine.plan import AR, Plan, Rung, diffusion, self_speculation
from engine.request import GenerationOptions

if TYPE_CHECKING:
    from engine.checkpoint.tokenizer import Tokenizer
    from engine.engine import Engine

THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
BLOCK_LENGTHS = (4, 8, 16, 32)
PROFILE_COUNTS = (1, 4, 16, 64)
SETUP_SEED = 1_000_003
"""Of the prompts that are measured on; the traces' seeds are small."""


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """How long and on how much to measure.

    Attributes:
        prompts: per idle measurement. window_s: of a closed loop. concurrency: at saturation. factors: see `Slos`.
        tuned_block: block length of the tuned fixed budget. saturation: requests per second, None = measure.
    """

    model: Path
    kv_tokens: int
    factors: dict[str, float]
    margin_tokens: int
    tightest: Tightest
    prompts: int = 16
    window_s: float = 1.5
    concurrency: int = 48
    tuned_block: int = 32
    saturation: float | None = None
    profile_counts: Sequence[int] = PROFILE_COUNTS


@dataclass(frozen=True, slots=True)
class Setup:
    """What all policies are built from.

    Attributes:
        slos: how SLOs follow from requests. tuned: the largest budget that meets the tightest tier on an idle engine.
        thresholds: rungs of `ByDeadline`, best first, with their measured tokens per forward.
        drafts, blocks: tokens per second by rung and number of sequences, of self-speculation and of diffusion.
        saturation: requests per second. fastest: the rung that reached it, none where it was `auto`.
        cost_model: the fitted cost of a forward, as saved text. measured: all of it as plain JSON.
    """

    options: SetupOptions
    slos: Slos
    tuned: Rung
    thresholds: tuple[Rung, ...]
    drafts: dict[Rung, dict[int, float]]
    blocks: dict[Rung, dict[int, float]]
    saturation: float
    fastest: dict[str, Rung]
    cost_model: str
    measured: dict[str, object]


def set_up(options: SetupOptions) -> Setup:
    """Measures everything on one engine, and prints what it finds."""
    engine = new_engine(options.model, options.kv_tokens)
    tokenizer = tokenizer_of(engine)
    warm_up(engine)
    engine.start()
    try:
        plain = plain_requests(tokenizer, options)
        sample = plain[: options.prompts]
        idle = measure_idle(engine, sample)
        print(f"idle: {idle.read_ms:.3f} ms a prompt token, {idle.token_ms:.2f} ms a token of AR, "
              f"{idle.block_ms:.1f} ms a block in two steps", flush=True)  # fmt: skip
        slos = Slos(idle, options.factors, options.margin_tokens, options.tightest)
        tuned, budgets = tune_budget(engine, tightest_requests(tokenizer, slos, options.prompts), options.tuned_block)
        print(f"tuned budget: {tuned.refinement_steps} steps a block of {tuned.block_length}", flush=True)
        thresholds = with_speed(engine, [diffusion(BLOCK, None, level) for level in THRESHOLDS], sample)
        drafts = profile(engine, [self_speculation(length) for length in BLOCK_LENGTHS], plain, options)
        blocks = profile(engine, [diffusion(length, None, 0.9) for length in BLOCK_LENGTHS], plain, options)
        rungs = {"ar": AR}
        # Drafts of 4 are never the fastest.
        rungs |= {f"self-speculation {rung.block_length}": rung for rung in drafts if rung.block_length > 4}
        speeds = {} if options.saturation else saturation_of(engine, rungs, plain, options)
        saturation = options.saturation or max(speeds.values())
        print(f"saturation: {saturation:.1f} requests/s", flush=True)
        cost_model = json.dumps(engine.cost_model.to_dict())
    finally:
        engine.stop()
    measured = {
        "idle_ms": {"read": idle.read_ms, "token": idle.token_ms, "two_step_block": idle.block_ms},
        "slo_factors": options.factors,
        "slo_margin_tokens": options.margin_tokens,
        "tightest_tier_by": options.tightest,
        "tuned_budget": {"steps": tuned.refinement_steps, "block_length": tuned.block_length, "share_in_time": budgets},
        "tokens_per_forward_by_threshold": {str(r.threshold): r.expected_tokens_per_forward for r in thresholds},
        "draft_length_tokens_per_s": by_length(drafts),
        "block_length_tokens_per_s": by_length(blocks),
        "saturation_requests_per_s": saturation,
        "saturation_by_policy": speeds,
    }
    return Setup(
        options,
        slos,
        tuned,
        thresholds,
        drafts,
        blocks,
        saturation,
        {name: rung for name, rung in rungs.items() if speeds.get(name) == saturation},
        cost_model,
        measured,
    )


def at_present(setup: Setup, asked: Sequence[Request]) -> Setup:
    """The same with SLOs and saturation as the machine is now: its speed changes by tens of percent within minutes.

    On an engine of its own; saturation by `auto` and what was the fastest at first, of the requests that are to be
    asked: a hundred of them may be a third longer on average than another hundred.
    """
    options = setup.options
    engine = new_engine(options.model, options.kv_tokens, setup.cost_model)
    engine.start()
    try:
        plain = plain_requests(tokenizer_of(engine), options)
        slos = replace(setup.slos, idle=measure_idle(engine, plain[: options.prompts]))
        if options.saturation:
            return replace(setup, slos=slos)
        speeds = saturation_of(engine, setup.fastest, asked, options)
        return replace(setup, slos=slos, saturation=max(speeds.values()))
    finally:
        engine.stop()


def plain_requests(tokenizer: Tokenizer, options: SetupOptions) -> list[Request]:
    """What is measured on, without SLOs."""
    return cycle_of(requests_of(tokenizer, Slos(Idle(0, 0, 0), {}), SETUP_SEED), max(options.prompts, 256))


def policies_of(setup: Setup, names: Sequence[str], admitted: Sequence[str] = ()) -> dict[str, tuple[Engine, Policy]]:
    """Policies, by name, each with a fresh engine of its own, started. `admitted`: also run with admission."""
    made: dict[str, tuple[Engine, Policy]] = {}

    def add(make: str, with_admission: bool = False) -> None:
        engine = new_engine(setup.options.model, setup.options.kv_tokens, setup.cost_model)
        engine.start()
        policy = make_policy(make, engine, setup)
        if with_admission:
            policy = Admitted(policy, engine)
        made[policy.name] = (engine, policy)

    for name in names:
        add(name)
    for name in admitted:
        add(name, with_admission=True)
    return made


POLICIES = (
    "stepdial",
    "ar",
    "self-speculation",
    "draft length by load",
    "fixed 32 steps",
    "fixed budget",
    "threshold 0.9",
    "threshold by deadline",
    "block length by load",
)


def make_policy(name: str, engine: Engine, setup: Setup) -> Policy:
    """One of `POLICIES`. Raises ValueError for another name."""
    if name == "stepdial":
        return Stepdial(engine, RouterProcess(str(setup.options.model)))
    if name == "draft length by load":
        return ByLoad(name, engine, setup.drafts)
    if name == "block length by load":
        return ByLoad(name, engine, setup.blocks)
    if name == "threshold by deadline":
        return ByDeadline(name, engine, setup.thresholds)
    rungs = {
        "ar": AR,
        "self-speculation": self_speculation(BLOCK),
        "fixed 32 steps": diffusion(BLOCK, BLOCK),
        "fixed budget": setup.tuned,
        "threshold 0.9": diffusion(BLOCK, None, 0.9),
    }
    if name not in rungs:
        raise ValueError(f"there is no policy {name!r}; allowed: {', '.join(POLICIES)}")
    return Fixed(name, rungs[name])


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The engine's tokenizer. Raises ValueError for a checkpoint without one."""
    if engine.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer; the benchmark asks tasks in text")
    return engine.tokenizer


def measure_idle(engine: Engine, sample: Sequence[Request]) -> Idle:
    """Answers one at a time, with AR and in two steps a block."""
    ar = [one.report for one in alone(engine, AR, sample)]
    two_step = [one.report for one in alone(engine, diffusion(BLOCK, 2), sample)]
    return idle_of(ar, two_step)


def alone(engine: Engine, rung: Rung, requests: Sequence[Request]) -> list[Answer]:
    """Answers on one rung, one at a time."""

    async def one_by_one() -> list[Answer]:
        return [await answer(engine, ask) for ask in asks(rung, requests)]

    return in_loop(one_by_one())


def together(engine: Engine, rung: Rung, requests: Sequence[Request], concurrency: int | None = None) -> list[Answer]:
    """Answers on one rung, `concurrency` at a time (default: all at once)."""
    return in_loop(answers(engine, asks(rung, requests), concurrency))


def asks(rung: Rung, requests: Sequence[Request]) -> list[Ask]:
    """The requests pinned to a rung, without deadlines."""
    plan = Plan(ladder=(rung,))
    return [
        Ask(request.prompt, GenerationOptions(max_tokens=request.max_tokens, temperature=0, seed=0), plan)
        for request in requests
    ]


def tightest_requests(tokenizer: Tokenizer, slos: Slos, prompts: int) -> list[Request]:
    """Requests of the tightest tier alone, with their SLOs."""
    return list(islice(requests_of(tokenizer, slos, SETUP_SEED, {"realtime": 1.0}), prompts))


def tune_budget(engine: Engine, requests: Sequence[Request], block: int) -> tuple[Rung, dict[int, float]]:
    """The largest budget whose idle p95 meets the SLO of `requests`, with the share in time of each that was tried.

    The fastest one where none does.
    """
    shares: dict[int, float] = {}
    rung = diffusion(block, 1)
    for rung in budgets_for(block):
        got = alone(engine, rung, requests)
        late = sum(
            one.report.latency_ms > (request.slo_ms or float("inf")) for one, request in zip(got, requests, strict=True)
        )
        shares[rung.refinement_steps] = 1 - late / len(requests)
        # Of n latencies the p95 meets the SLO when at most 5% of them are late.
        if late <= len(requests) * 0.05:
            break
    return rung, shares


def with_speed(engine: Engine, rungs: Sequence[Rung], requests: Sequence[Request]) -> tuple[Rung, ...]:
    """The rungs with the tokens per forward that their answers to `requests` have here."""
    known = []
    for rung in rungs:
        reports = [one.report for one in together(engine, rung, requests)]
        tokens = sum(report.completion_tokens for report in reports)
        forwards = sum(report.forwards - ceil(report.prompt_tokens / engine.config.prefill_chunk) for report in reports)
        known.append(replace(rung, expected_tokens_per_forward=tokens / max(forwards, 1)))
    return tuple(known)


def profile(
    engine: Engine, rungs: Sequence[Rung], requests: Sequence[Request], options: SetupOptions
) -> dict[Rung, dict[int, float]]:
    """Tokens per second of each rung at each number of sequences."""
    speeds: dict[Rung, dict[int, float]] = {}
    for rung in rungs:
        policy = Fixed("profile", rung)
        speeds[rung] = {}
        for sequences in options.profile_counts:
            run = closed_loop(engine, policy, requests, sequences, Window(options.window_s / 2, options.window_s))
            speeds[rung][sequences] = in_loop(run).tokens_per_s
    return speeds


def saturation_of(
    engine: Engine, rungs: Mapping[str, Rung], requests: Sequence[Request], options: SetupOptions
) -> dict[str, float]:
    """Requests per second for which `auto` and each rung have the throughput, `concurrency` at a time without SLOs.

    Of the answers' mean length, not of those that end within a window, which are the shorter ones.
    """
    policies: list[Policy] = [Stepdial(engine, RouterProcess(str(options.model)), "auto")]
    policies += [Fixed(name, rung) for name, rung in rungs.items()]
    unbounded = [replace(request, slo_ms=None, tier="default") for request in requests]
    mean_tokens = fmean(request.answer_tokens for request in requests)
    window = Window(2 * options.window_s, 4 * options.window_s)
    speeds = {}
    for policy in policies:
        run = closed_loop(engine, policy, unbounded, options.concurrency, window)
        speeds[policy.name] = in_loop(run).tokens_per_s / mean_tokens
        policy.close()
    return speeds


def by_length(speeds: dict[Rung, dict[int, float]]) -> dict[str, dict[str, float]]:
    """A profile as plain JSON: tokens per second by block length, then by number of sequences."""
    return {str(rung.block_length): {str(n): speed for n, speed in row.items()} for rung, row in speeds.items()}
