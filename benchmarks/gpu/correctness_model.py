"""Whole models: a 14B-shaped one in bf16 against its own layers in float32, and stepdial-tiny's answers on this device
against the CPU's, by one rank and by two.

Both ranks of the two are on this one device and exchange through gloo: that shows that a group computes the same with
its kernels, each on its part, and nothing of NCCL between two GPUs, which needs two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.command import CHECKPOINT
from benchmarks.gpu.engine_loop import answer, core_around
from benchmarks.gpu.forward import executor_of
from benchmarks.gpu.paged import canvases, pages_of
from benchmarks.gpu.section import Row, Section, overlapped
from benchmarks.gpu.shapes import MODELS, TINY, RandomWeights, Widened, build
from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from engine.executor import Executor
from engine.graphs import recorded
from engine.loading import load_executor
from engine.model.linear import Linear
from engine.model.narrow_linear import NarrowLinear
from engine.model.transformer import Product, Transformer
from engine.plan import AR, Rung, diffusion, self_speculation
from kernels.row_statistics import RowRules

LAYERS = 4
REPLAYS = 200
GAP_BOUND = 0.25
"""Of two logits, in float32: bf16 may choose another token only below it. Logits of random weights lie within 8, where
a step of bf16 is 2**-5; eight steps leave room for what four layers add to the head's own rounding."""
MODES: dict[str, Rung] = {
    "ar": AR,
    "diffusion 32, threshold 0.9": diffusion(32, None, 0.9),
    "diffusion 16, 4 steps": diffusion(16, 4),
    "diffusion 32, 8 steps, audit exact": diffusion(32, 8, None, "exact"),
    "self-speculation 32": self_speculation(32),
}
PROMPTS = 4
TOKENS = 48


@dataclass(frozen=True, slots=True)
class Loading:
    """The fields of `EngineConfig` that loading reads; float32, where a sum in another order chooses no other token."""

    device: str
    tp: int = 1
    tp_backend: str = "gloo"
    dtype: str = "float32"
    quantization: str = "none"
    batch_invariant: bool = False
    cuda_graphs: bool = False
    narrow_products: bool = False
    kv_tokens: int = 4096
    kv_memory_fraction: float = 1.0
    max_kv_tokens: int = 4096


def run(section: Section) -> None:
    """One row per check."""
    section.row("14B-shaped layers, bf16 against float32", partial(layers, section))
    if section.device.type == "cuda" and section.triton:
        # One canvas and two by our kernels; three, and all with the library's products, by a mixture.
        for name, product, count in (
            ("narrow", NarrowLinear, 1),
            ("narrow", NarrowLinear, 2),
            ("narrow", NarrowLinear, 3),
            ("library", Linear, 1),
        ):
            title = f"14B-shaped layers, overlapping kernels, {name} products, {count} canvases"
            section.row(title, partial(overlapping, section, product, count))
    for name, rung in MODES.items():
        section.row(f"stepdial-tiny, {name}", partial(whole_answers, section, {name: rung}, 1))
    section.row("stepdial-tiny, two ranks by gloo", partial(whole_answers, section, MODES, 2))


def layers(section: Section) -> Row:
    """Reads a context, then chooses a token in every row of canvases over it, in bf16 and in float32."""
    config = replace(TINY if section.tiny else MODELS["14B"], num_layers=2 if section.tiny else LAYERS)
    count, context = (2, 70) if section.tiny else (8, 300)
    weights = RandomWeights(config, torch.bfloat16, section.device)
    segments = canvases(count, context, config.vocab_size)
    draw = torch.Generator().manual_seed(8)
    reading = [
        Segment(
            tokens=torch.randint(0, config.vocab_size, (context,), generator=draw).tolist(),
            start=0,
            causal=True,
            drafted=False,
            wanted=[],
            pages=segment.pages,
        )
        for segment in segments
    ]
    pages = pages_of(count, context)
    with torch.inference_mode():
        tokens = _chosen(Executor(build(weights), pages, config.block_size), reading, segments)
        wide = Executor(Transformer(config, Widened(weights)), pages, config.block_size)
        logits = _logits(wide, reading, segments)
        logits[:, config.mask_token_id] = float("-inf")
    best = logits.max(-1)
    gaps = best.values - logits.gather(1, tokens[:, None])[:, 0]
    largest = float(gaps.max())
    return {
        "rows": len(tokens),
        "other_tokens": int((tokens != best.indices).sum()),
        "rate": float((tokens != best.indices).double().mean()),
        "largest_gap": largest,
        "bound": GAP_BOUND,
        "passed": largest <= GAP_BOUND,
    }


def overlapping(section: Section, product: type[Product], count: int) -> Row:
    """A forward of overlapping kernels, recorded and replayed many times, against one of kernels that do not overlap:
    the same bits always. Two sets of tokens take turns, and the K/V that the forward writes is no number before, so
    that what is read too early shows."""
    config, context = replace(MODELS["14B"], num_layers=LAYERS), 4000
    executor = executor_of(section, config, product, ((count, context),))
    batch = executor.batch(canvases(count, context, config.vocab_size))
    rows, written = batch.query_tokens, batch.slots[: batch.query_tokens]

    def forward() -> Tensor:
        return executor.model.forward(batch, executor.kv)

    with torch.inference_mode():
        tokens = [batch.token_ids.clone(), batch.token_ids.roll(1)]
        with overlapped(False):
            plain, result = recorded(forward)
        want = []
        for mine in tokens:
            batch.token_ids.copy_(mine)
            plain.replay()
            want.append(result[:rows].clone())
        with overlapped(True):
            graph, got = recorded(forward)
        other = torch.zeros((), dtype=torch.int64, device=section.device)
        for replay in range(REPLAYS):
            batch.token_ids.copy_(tokens[replay % 2])
            executor.kv[:, written] = float("nan")
            graph.replay()
            other += (got[:rows] != want[replay % 2]).any(-1).sum()
    return {"rows": rows * REPLAYS, "other_rows": int(other), "passed": int(other) == 0}


def whole_answers(section: Section, modes: dict[str, Rung], ranks: int) -> Row:
    """stepdial-tiny, greedy: the same tokens from so many ranks on this device as from one on the CPU."""
    draw = torch.Generator().manual_seed(9)
    prompts = [torch.randint(300, 700, (20 + 9 * index,), generator=draw).tolist() for index in range(PROMPTS)]
    mine = _answers(Loading(section.device.type, ranks), modes, prompts)
    plain = _answers(Loading("cpu"), modes, prompts)
    first = [
        next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        for one, other in zip(mine, plain, strict=True)
    ]
    return {
        "rows": sum(len(tokens) for tokens in plain),
        "other_answers": sum(one != other for one, other in zip(mine, plain, strict=True)),
        "first_difference": min((place for place in first if place is not None), default=None),
        "passed": mine == plain,
    }


def _answers(loading: Loading, modes: dict[str, Rung], prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of all prompts on one rung after the other."""
    executor = load_executor(Path(CHECKPOINT), ModelConfig.from_dir(CHECKPOINT), cast(Any, loading))
    try:
        core = core_around(executor)
        return [tokens for rung in modes.values() for tokens in answer(core, rung, prompts, TOKENS).tokens]
    finally:
        executor.close()


def _chosen(executor: Executor, reading: list[Segment], segments: list[Segment]) -> Tensor:
    """Tokens of all rows of the canvases, on the CPU, after reading the contexts; the mask id is never one."""
    model = executor.model
    if executor.keeps_logits:
        logits = _logits(executor, reading, segments)
        logits[:, model.config.mask_token_id] = float("-inf")
        return logits.argmax(-1)
    _read(executor, reading)
    batch = executor.batch(segments)
    none = torch.empty(batch.wanted, 0, dtype=torch.int64, device=model.device)
    given = torch.full((batch.wanted,), -1, device=model.device)
    asked = RowRules(model.config.mask_token_id, none, given)
    return model.statistics(model.forward(batch, executor.kv), batch.logit_rows[: batch.wanted], asked).tokens.cpu()


def _logits(executor: Executor, reading: list[Segment], segments: list[Segment]) -> Tensor:
    """float32 logits of all rows of the canvases, on the CPU, after reading the contexts."""
    _read(executor, reading)
    return executor.run(executor.batch(segments))


def _read(executor: Executor, reading: list[Segment]) -> None:
    executor.model.forward(executor.batch(reading), executor.kv)
