"""Tokens per second of the modes against the released loops on the same weights, and how long the GPU waits.

How many tokens a forward yields is forced, because random weights predict nothing:

- AR: one, as always;
- diffusion: blocks of 32 with a budget of 8 steps and no threshold, so 8 forwards and the look: 32 / 9 a forward;
- diffusion with a threshold: on a model that chooses the same token everywhere (`RandomWeights.agreeing`), and is sure
  of it, so that one step fills a block: 32 in two forwards. After each of them the host must know what was chosen;
- self-speculation: blocks of 32 on that model, so that AR accepts every draft: 32 in two forwards.

`engine in graphs` is the same loop with `cuda_graphs` (`engine/graphs.py`).

The engine's loop runs without server, thread or client (`engine_loop.py`); the reference answers one request at a time,
so many at once take it as long as one after the other. Prompts are read within the time of both.

The GPU's wait is the time between the end of a forward and the start of the next, on the device's own clock: choosing
at borders, unmasking, laying out and scheduling. The few small kernels of unmask and audit run in it, so it is an upper
bound of that kind of idleness. Gaps between the launches of one forward are not in it; those show in `forward`, as
eager against graph. Steps that are run in a row (`Executor.denoise`) count as one forward here, the look that follows
without the host (`Executor.look`) as another.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.engine_loop import Answers, answer, core_of
from benchmarks.gpu.floors import BYTES, weight_bytes
from benchmarks.gpu.forward import RESERVED_BYTES, free_bytes
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import FAVOURITE, MODELS, TINY, RandomWeights, build
from engine.core import EngineCore
from engine.graphs import CudaRecorder, Record
from engine.plan import AR, Rung, diffusion, self_speculation

STEPS = 8
THRESHOLD = 0.9
MODES: dict[str, Rung] = {
    "ar": AR,
    "diffusion": diffusion(32, STEPS),
    "diffusion by threshold": diffusion(32, STEPS, THRESHOLD),
    "self-speculation": self_speculation(32),
}
FORCED = {"ar": 1.0, "diffusion": 32 / (STEPS + 1), "diffusion by threshold": 16.0, "self-speculation": 16.0}
"""Tokens per forward of a request, its prompt not counted."""
IN_GRAPHS = "engine in graphs"
CONCURRENT = (1, 32)
PROMPT_TOKENS = 128
TOKENS = {"ar": 128, "diffusion": 256, "diffusion by threshold": 256, "self-speculation": 256}
"""Of an answer, multiples of 32: so many that reading the prompt is a small part of the time."""
TINY_TOKENS = 32
KV_TOKENS = max(CONCURRENT) * (PROMPT_TOKENS + max(TOKENS.values()) + 64)
RUNS = 3


def run(section: Section) -> None:
    """Rows `engine, <mode>, <concurrency>`, then `reference, <mode>`, and on a GPU the engine's `in graphs`: in the
    order in which bars want them, because time may run out. One model at a time is in memory."""
    name = chosen_model(section)
    if name is None:
        section.leave_out("all", f"{free_bytes(section) / 1e9:.0f} GB free; the 3B needs more")
        return
    config = TINY if section.tiny else MODELS[name]
    weights = RandomWeights(config, torch.bfloat16, section.device, agreeing=True)
    tokens = dict.fromkeys(MODES, TINY_TOKENS) if section.tiny else TOKENS
    engines(section, "engine", weights, name, tokens, None)
    try:
        references(section, weights, name, tokens)
    except Exception as error:
        section.fail("reference", error)
    section.release()
    if section.device.type == "cuda" and section.triton:
        engines(section, IN_GRAPHS, weights, name, tokens, CudaRecorder())


def references(section: Section, weights: RandomWeights, name: str, tokens: dict[str, int]) -> None:
    """The rows of the released loops."""
    if section.omits("reference"):
        return
    # Only here is transformers needed; without it this fails and the rows above stay.
    from benchmarks.gpu.reference import RandomReference

    loops = RandomReference(weights)
    for mode in MODES:
        section.row(f"reference, {mode}", partial(reference, section, loops, name, mode, tokens[mode]))


def engines(
    section: Section, title: str, weights: RandomWeights, name: str, tokens: dict[str, int], record: Record | None
) -> None:
    """The rows of one engine."""
    if section.omits(title):
        return
    try:
        core = core_of(build(weights, drafting=True), KV_TOKENS, record)
    except Exception as error:
        # Where something in a forward cannot be recorded, CUDA says so, and Triton where it does not compile.
        section.fail(title, error)
    else:
        for concurrency in CONCURRENT:
            for mode in MODES:
                make = partial(measured, section, core, name, mode, concurrency, tokens[mode])
                section.row(f"{title}, {mode}, {concurrency}", make)
        del core, make
    section.release()


def chosen_model(section: Section) -> str | None:
    """The 14B, or the 3B where memory is short."""
    if section.tiny:
        return "tiny"
    for name in ("14B", "3B"):
        config = MODELS[name]
        kv = KV_TOKENS * config.kv_bytes_per_token("bfloat16")
        embedding = BYTES * config.vocab_size * config.hidden_size
        # A tenth more for the draft adapter and what stacking a layer's weights takes on the way.
        if 1.1 * (weight_bytes(config) + embedding) + kv + RESERVED_BYTES <= free_bytes(section):
            return name
    return None


@dataclass(slots=True)
class Marks:
    """Where forwards begin and end, on the device's clock: events on a GPU, seconds on a CPU."""

    device: torch.device
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, marked."""

        def marked(*arguments: Any) -> Any:
            first = self._mark()
            result = call(*arguments)
            self.spans.append((first, self._mark()))
            return result

        return marked

    def waiting(self) -> float:
        """The share of time, from the first forward's start to the last one's end, that lies between forwards."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = zip(self.spans, self.spans[1:], strict=False)
        between = sum(self._seconds(before[1], after[0]) for before, after in pairs)
        return between / self._seconds(self.spans[0][0], self.spans[-1][1])

    def _mark(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, first: Any, last: Any) -> float:
        elapsed: float = last - first if self.device.type == "cpu" else first.elapsed_time(last) / 1e3
        return elapsed


def measured(section: Section, core: EngineCore, name: str, mode: str, concurrency: int, tokens: int) -> Row:
    """The engine on `concurrency` requests at once; the median of some runs after one that compiles."""
    ask = prompts(section, concurrency)
    answer(core, MODES[mode], ask, tokens)
    speeds, marks, last = [], Marks(section.device), Answers()
    executor = core.executor
    ways = ("run",) if executor.keeps_logits else ("choose", "denoise", "denoise_on", "look")
    plain = {way: getattr(executor, way) for way in ways}
    for _ in range(1 if section.tiny else RUNS):
        last = answer(core, MODES[mode], ask, tokens)
        speeds.append(sum(len(ids) for ids in last.tokens) / last.seconds)
    try:
        for way, call in plain.items():
            setattr(executor, way, marks.around(call))
        answer(core, MODES[mode], ask, tokens)
    finally:
        # Set to its own method again, the executor would hold itself in memory.
        for way in plain:
            delattr(executor, way)
    count = sum(len(ids) for ids in last.tokens)
    return {
        "model": name,
        "mode": mode,
        "concurrency": concurrency,
        "tokens_per_s": statistics.median(speeds),
        "runs": speeds,
        "forced_tokens_per_forward": FORCED[mode],
        "tokens_per_forward": count / sum(forwards - 1 for forwards in last.slot_forwards),
        "forwards": last.forwards,
        "forwards_per_s": last.forwards / last.seconds,
        "waiting": marks.waiting(),
        "passed": all(ids == [FAVOURITE] * tokens for ids in last.tokens),
    }


def reference(section: Section, loops: Any, name: str, mode: str, tokens: int) -> Row:
    """One request through the released loop."""
    (prompt,) = prompts(section, 1)
    call = {
        "ar": partial(loops.ar_generate, prompt, tokens),
        "diffusion": partial(loops.generate, prompt, tokens, 32, None, STEPS),
        "diffusion by threshold": partial(loops.generate, prompt, tokens, 32, THRESHOLD),
        "self-speculation": partial(loops.linear_spec_generate, prompt, tokens, 32),
    }[mode]
    call()
    speeds, ids, forwards = [], [], 0
    for _ in range(1 if section.tiny else RUNS):
        section.clock.synchronize()
        begun = time.perf_counter()
        answered = call()
        # Its tokens are on the host by now.
        taken_s = time.perf_counter() - begun
        ids, forwards = answered.ids[:tokens], answered.nfe
        speeds.append(len(ids) / taken_s)
    return {
        "model": name,
        "mode": mode,
        "tokens_per_s": statistics.median(speeds),
        "runs": speeds,
        "forwards": forwards,
        "passed": ids == [FAVOURITE] * tokens,
    }


def prompts(section: Section, count: int) -> list[list[int]]:
    """Random prompts; ids above the special ones."""
    vocab = (TINY if section.tiny else MODELS["14B"]).vocab_size
    draw = torch.Generator().manual_seed(12)
    return torch.randint(200, vocab, (count, PROMPT_TOKENS), generator=draw).tolist()
