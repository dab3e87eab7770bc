"""The engine and what it is compared with, on the same weights in the same process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.answers import Ask, answers
from benchmarks.bare_model import BareForward, BareModel, Shape
from benchmarks.reference_loops import ReferenceLoops
from engine.batch import Segment
from engine.config import EngineConfig
from engine.engine import Engine
from engine.plan import Decoding, Plan, Rung
from engine.request import GenerationOptions

KEYS = 640
"""Places per sequence in the bare model's cache: the longest prompt and answer of the workload."""


class Timer:
    """Wall-clock and CPU seconds of a `with` block, over all threads of the process."""

    def __enter__(self) -> Timer:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s


class Bench:
    """The engine, its opponents, and the prompts."""

    def __init__(self, model: Path, threads: int, max_tokens: int) -> None:
        torch.set_num_threads(threads)
        self.engine = Engine.from_pretrained(
            model, EngineConfig(dtype="float32", threads=threads, prefix_reuse=False, kv_tokens=65_536)
        )
        self.reference = ReferenceLoops(model)
        self.bare = BareModel(self.engine.core.executor.model, sequences=64, keys=KEYS)
        self.max_tokens = max_tokens
        self.engine.start()

    def asks(self, plan: Plan, prompts: Sequence[list[int]]) -> list[Ask]:
        options = GenerationOptions(temperature=0, max_tokens=self.max_tokens)
        return [Ask(prompt, options, plan) for prompt in prompts]

    def run_engine(self, plan: Plan, prompts: Sequence[list[int]], concurrency: int) -> int:
        """Answers all prompts; returns how many tokens came."""
        got = asyncio.run(answers(self.engine, self.asks(plan, prompts), concurrency))
        return sum(len(one.token_ids) for one in got)

    def calibrated(self, ladder: Sequence[Rung], prompts: Sequence[list[int]]) -> tuple[Rung, ...]:
        """The ladder; a rung that no calibration has measured gets the tokens per forward of a few prompts here."""
        known = []
        for rung in ladder:
            if rung.expected_tokens_per_forward is None:
                got = asyncio.run(answers(self.engine, self.asks(Plan(ladder=(rung,)), prompts)))
                tokens = sum(one.report.completion_tokens for one in got)
                forwards = sum(one.report.forwards - 1 for one in got)
                rung = replace(rung, expected_tokens_per_forward=tokens / forwards)
            known.append(rung)
        return tuple(known)

    def record(
        self, plan: Plan, prompts: Sequence[list[int]], concurrency: int
    ) -> tuple[list[BareForward], dict[str, float]]:
        """The shapes of the forwards that the engine runs, laid out for the bare call, and the CPU of its parts."""
        executor, postprocessor = self.engine.core.executor, self.engine.core.postprocessor
        shapes: list[list[Shape]] = []
        spent = {"lay out": 0.0, "model": 0.0, "choose and settle": 0.0}
        lay_out, run, apply = executor.batch, executor.run, postprocessor.apply

        def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any) -> Any:
                # With one torch thread a call's CPU is its thread's; more threads share it about equally.
                begun = time.thread_time()
                result = call(*args)
                spent[name] += (time.thread_time() - begun) * (torch.get_num_threads() if name == "model" else 1)
                return result

            return wrapped

        def batch(segments: list[Segment]) -> Any:
            shapes.append([Shape(len(s.tokens), s.start, s.causal, s.drafted, len(s.wanted)) for s in segments])
            return timed("lay out", lay_out)(segments)

        executor.batch, executor.run = batch, timed("model", run)  # type: ignore[method-assign]
        postprocessor.apply = timed("choose and settle", apply)  # type: ignore[method-assign]
        try:
            with Timer() as whole:
                self.run_engine(plan, prompts, concurrency)
        finally:
            del executor.batch, executor.run, postprocessor.apply
        spent["schedule, deliver, client"] = whole.cpu_s - sum(spent.values())
        split = {name: value / len(shapes) * 1e3 for name, value in spent.items()}
        return [self.bare.lay_out(shape) for shape in shapes], split

    def run_bare(self, forwards: Sequence[BareForward]) -> None:
        """The bare calls, each read back as an engine must."""
        for forward in forwards:
            self.bare.run(forward).tolist()

    def run_reference(self, rung: Rung, prompts: Sequence[list[int]]) -> int:
        """Answers all prompts, one at a time; returns how many tokens a server would keep."""
        tokens, loops = 0, self.reference
        for prompt in prompts:
            if rung.decoding is Decoding.AR:
                ids = loops.ar_generate(prompt, self.max_tokens).ids
            elif rung.is_diffusion:
                length, steps = rung.block_length, rung.refinement_steps
                ids = loops.generate(prompt, self.max_tokens, length, rung.threshold, steps).ids
            else:
                ids = loops.linear_spec_generate(prompt, self.max_tokens, rung.block_length).ids
            # What overshoots `max_new_tokens` is thrown away by a server.
            tokens += len(ids[: self.max_tokens])
        return tokens
