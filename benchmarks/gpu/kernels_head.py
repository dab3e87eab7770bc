"""The denoise head against torch: the whole of it, and what comes after the product."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import rivals
from benchmarks.gpu.head_inputs import random_head, rules, unmask_arguments
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import BLOCK, MODELS, TINY
from kernels.combine import finish
from kernels.denoise_head import PIECE, _pieces_kernel, _rule_arguments, denoise_head
from kernels.row_statistics import RowRules, Statistics, partials_torch
from kernels.unmask import Unmasked, unmask

TIMES = 4
"""Calls in one graph."""


def run(section: Section) -> None:
    """Rows `head` (product, statistics, unmask) and `after the product`, at one and at 32 canvases."""
    for rows in (32, 64) if section.tiny else (32, 1024):
        for sampled in (False, True):
            way = "sampled" if sampled else "greedy"
            for title, form in (("head", head), ("after the product", after_product)):
                name = f"{title}, {rows} rows, {way}"
                section.row(name, partial(form, section, name, rows, sampled))


def head(section: Section, name: str, rows: int, sampled: bool) -> Row:
    """Hidden states to unmasked canvases. Memory is what a call allocates at most beyond its inputs."""
    config = TINY if section.tiny else MODELS["14B"]
    hidden, weight = random_head(section, config, rows, torch.bfloat16)
    asked = rules(section, config, rows, sampled)
    mine, theirs = (_canvases(section, rows) for _ in range(2))

    def ours() -> Unmasked:
        return _unmasked(denoise_head(hidden, weight, asked), *mine)

    def plain(hidden: Tensor, weight: Tensor, temperature: Tensor | None, *canvases: Tensor) -> tuple[Tensor, ...]:
        return _plain(hidden @ weight.t(), config.mask_token_id, temperature, *canvases)

    given = (hidden, weight, None if asked.noise is None else asked.noise.temperature, *theirs)
    eager = partial(plain, *given)
    row = rivals.compared(section, name, [ours] * TIMES, [eager] * TIMES, plain, [given] * TIMES)
    clock = section.clock
    row |= {"extra_bytes": clock.extra_bytes(ours), "eager_bytes": clock.extra_bytes(eager), "compiled_bytes": None}
    if row["compiled_ms"] is not None:
        row["compiled_bytes"] = clock.extra_bytes(rivals.compiled_calls(section, plain, [given])[0])
    return {"rows": rows, "sampled": sampled, **row}


def after_product(section: Section, name: str, rows: int, sampled: bool) -> Row:
    """Logits `[rows, vocab]` that a product has left, to unmasked canvases.

    An unmask writes in place: after the first call no or few masks are left, for all alike, and it reads the same.
    """
    config = TINY if section.tiny else MODELS["14B"]
    hidden, weight = random_head(section, config, rows, torch.bfloat16)
    logits = hidden @ weight.t()
    asked = rules(section, config, rows, sampled)
    mine, theirs = (_canvases(section, rows) for _ in range(2))

    def ours() -> Unmasked:
        return _unmasked(statistics_of(logits, asked, section.triton), *mine)

    def plain(logits: Tensor, temperature: Tensor | None, *canvases: Tensor) -> tuple[Tensor, ...]:
        return _plain(logits, config.mask_token_id, temperature, *canvases)

    given = (logits, None if asked.noise is None else asked.noise.temperature, *theirs)
    row = rivals.compared(section, name, [ours] * TIMES, [partial(plain, *given)] * TIMES, plain, [given] * TIMES)
    return {"rows": rows, "sampled": sampled, **row}


def statistics_of(logits: Tensor, asked: RowRules, triton: bool) -> Statistics:
    """What the chunked form does with a chunk (`kernels/denoise_head.py`), with all logits as one chunk."""
    rows, vocab = logits.shape
    if not triton:
        return finish(partials_torch(logits.float(), 0, asked), asked)
    parts = -(-vocab // PIECE)
    partials = torch.empty(asked.fields, rows, parts, dtype=torch.float32, device=logits.device)
    _pieces_kernel[(rows, parts)](
        logits,
        vocab,
        0,
        0,
        parts,
        rows,
        partials,
        *_rule_arguments(asked),
        SAMPLED=asked.noise is not None,
        IDS=PIECE,
        num_warps=8,
    )
    return finish(partials, asked)


def _canvases(section: Section, rows: int) -> list[Tensor]:
    config = TINY if section.tiny else MODELS["14B"]
    return unmask_arguments(section, config, rows // BLOCK, BLOCK)


def _unmasked(known: Statistics, canvas: Tensor, masked: Tensor, *rest: Tensor) -> Unmasked:
    shape = canvas.shape
    length, steps_left, threshold, stop_ids = rest
    tokens, confidence = known.tokens.view(shape), known.confidence.view(shape)
    return unmask(canvas, masked, tokens, confidence, length, steps_left, threshold, stop_ids)


def _plain(logits: Tensor, mask_id: int, temperature: Tensor | None, *canvases: Tensor) -> tuple[Tensor, ...]:
    canvas, masked, length, steps_left, threshold, stop_ids = canvases
    tokens, confidence, entropy, margin = rivals.statistics(logits, mask_id, temperature)
    shape = canvas.shape
    rest = (length, steps_left, threshold, stop_ids)
    return (*rivals.unmask(canvas, masked, tokens.view(shape), confidence.view(shape), *rest), entropy, margin)
