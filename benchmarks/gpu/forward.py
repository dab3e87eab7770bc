"""Forwards of whole models against the floor that the bytes and FLOPs of `performance.md` 1.2 set on this machine.

A forward is what a denoise step of a batch of canvases runs: all layers, and a token and its statistics for every row.
It is launched eagerly, and replayed as a CUDA graph of the same call where that captures. Weights and K/V are random;
every canvas has pages of its own. Before the first forward of a shape, kernels compile. What its time goes to is in
`breakdown.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.floors import BYTES, forward_floor, weight_bytes
from benchmarks.gpu.paged import canvases, pages_of
from benchmarks.gpu.section import Row, Section, overlapped
from benchmarks.gpu.shapes import BLOCK, MODELS, TINY, RandomWeights, build
from engine.checkpoint.config import ModelConfig
from engine.executor import Executor
from engine.model.fixed_linear import FixedLinear
from engine.model.fp8_linear import Fp8Linear
from engine.model.linear import Linear
from engine.model.narrow_linear import NarrowLinear
from engine.model.transformer import Product
from kernels.reach_work import FIXED
from kernels.row_statistics import RowRules

COUNTS = (1, 32, 2, 4, 8, 16, 64)
"""Canvases, those of the bars first: time may run out."""
CONTEXTS = (512, 4096, 16_384)
RESERVED_BYTES = 8 << 30
"""Of the card, for activations, graphs and workspaces."""
SHARES = {"14B": 2, "14B narrow": 1, "14B narrow overlapped": 1, "14B fp8": 1, "14B fixed": 1, "8B": 1, "3B": 1}
"""Of the section's time, by model and what its products are made by (`PRODUCTS`)."""
PRODUCTS: dict[str, type[Product]] = {
    "": Linear,
    "narrow": NarrowLinear,
    "narrow overlapped": NarrowLinear,
    "fp8": Fp8Linear,
    "fixed": FixedLinear,
}
"""`narrow`: few rows by our kernel; `overlapped`: kernels begin before the one before has ended. `fixed`: nothing
depends on the batch, attention's splits included."""
NARROW_COUNTS = (1, 2)
"""Canvases of which our kernel makes the products."""


def run(section: Section) -> None:
    """One row per model, number of canvases and context."""
    if section.tiny:
        model(section, "tiny", TINY, (1, 3), (40, 70))
        model(section, "tiny fp8", TINY, (1, 3), (40,))
        return
    ends_s = section.ends_s
    names = list(SHARES)
    for index, name in enumerate(names):
        left_s = max(ends_s - time.monotonic(), 0)
        share = SHARES[name] / sum(SHARES[later] for later in names[index:])
        section.ends_s = time.monotonic() + share * left_s
        try:
            size, _, products = name.partition(" ")
            narrow = PRODUCTS[products] is NarrowLinear
            contexts = CONTEXTS[:1] if products and not narrow else CONTEXTS
            with overlapped(products.endswith("overlapped")):
                model(section, name, MODELS[size], NARROW_COUNTS if narrow else COUNTS, contexts)
        except Exception as error:
            section.fail(name, error)
        section.release()


def model(section: Section, name: str, config: ModelConfig, counts: tuple[int, ...], contexts: tuple[int, ...]) -> None:
    """All rows of one model, with K/V for the largest batch that fits."""
    cells = [(count, context) for count in counts for context in contexts]
    if section.omits(name):
        return
    free, products = free_bytes(section), name.partition(" ")[2]
    embedding_bytes = BYTES * config.vocab_size * config.hidden_size
    kv_bytes = free - weight_bytes(config, products == "fp8") - embedding_bytes - RESERVED_BYTES
    page_bytes = BLOCK * config.kv_bytes_per_token("bfloat16")
    fitting = [cell for cell in cells if pages_of(*cell) * page_bytes <= kv_bytes]
    for count, context in cells:
        if (count, context) not in fitting:
            needed = pages_of(count, context) * page_bytes / 1e9
            section.leave_out(f"{name}, {count} x {context}", f"K/V of {needed:.0f} GB, {kv_bytes / 1e9:.0f} GB free")
    if not fitting:
        return
    executor = executor_of(section, config, PRODUCTS[products], fitting)
    for count, context in fitting:
        make = partial(cell, section, executor, name, config, count, context)
        section.row(f"{name}, {count} x {context}", make)


def executor_of(
    section: Section, config: ModelConfig, product: type[Product], cells: Sequence[tuple[int, int]]
) -> Executor:
    """A model of random weights with random K/V for the largest of these cells."""
    executor = Executor(
        build(RandomWeights(config, torch.bfloat16, section.device), product=product),
        max(pages_of(*cell) for cell in cells),
        BLOCK,
        splits=FIXED if product is FixedLinear else None,
    )
    for layer in executor.kv:
        layer.normal_(generator=section.draw(6))
    return executor


def cell(section: Section, executor: Executor, name: str, config: ModelConfig, count: int, context: int) -> Row:
    """One batch: measured, its floor, and how they compare."""
    batch = executor.batch(canvases(count, context, config.vocab_size))
    step = step_of(executor, batch)
    clock = section.clock
    row: Row = {"model": name, "canvases": count, "context": context, "eager_ms": clock.run_ms(step, repeats=10)}
    row |= {"graph_ms": None, "graph_failed": None}
    if clock.cuda:
        try:
            row["graph_ms"] = clock.graph_ms(step)
        except Exception as error:
            row["graph_failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            section.fail(f"{name}, {count} x {context}: CUDA graph", error)
    return {**row, **against_floor(section, config, row)}


def against_floor(section: Section, config: ModelConfig, row: Row) -> Row:
    """The floor of a row's batch, and its best time over it; None where the ceilings were not measured."""
    floor = forward_floor(config, row["canvases"], row["context"], BLOCK, row["model"].endswith(" fp8"))
    found: Row = {"floor_bytes": floor.bytes, "floor_flops": floor.flops}
    best_ms = row["eager_ms"] if row["graph_ms"] is None else row["graph_ms"]
    if section.ceilings is None:
        return found | dict.fromkeys(("memory_ms", "compute_ms", "bound", "over_floor", "of_bandwidth", "of_rate"))
    memory_s, compute_s = floor.memory_s(section.ceilings), floor.compute_s(section.ceilings)
    return found | {
        "memory_ms": memory_s * 1e3,
        "compute_ms": compute_s * 1e3,
        "bound": "memory" if memory_s >= compute_s else "compute",
        "over_floor": best_ms / 1e3 / floor.seconds(section.ceilings),
        "of_bandwidth": memory_s * 1e3 / best_ms,
        "of_rate": compute_s * 1e3 / best_ms,
    }


def step_of(executor: Executor, batch: Any) -> Any:
    """One forward and the choice of its tokens, as `Executor.choose` and `Executor.run` do it."""
    model = executor.model
    if executor.keeps_logits:
        return partial(executor.run, batch)
    rows = batch.logit_rows[: batch.wanted]
    asked = RowRules(
        model.config.mask_token_id,
        torch.empty(batch.wanted, 0, dtype=torch.int64, device=model.device),
        torch.full((batch.wanted,), -1, device=model.device),
    )

    @torch.inference_mode()
    def step() -> Any:
        return model.statistics(model.forward(batch, executor.kv), rows, asked)

    return step


def free_bytes(section: Section) -> int:
    """Memory of the device that is free now; on a CPU, plenty for what is tiny."""
    if section.device.type == "cpu":
        return 1 << 40
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(section.device)[0])
