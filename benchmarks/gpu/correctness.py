"""Correctness first: what is fast and wrong is not worth a measurement.

Kernels are compared with references in float64 by |got - want| / |want| over all numbers: float32 arithmetic lands far
below 1e-5, bf16 between 1e-3 and 1e-2; NaN never passes. What decides about tokens (`correctness_head.py`) is compared
token by token, models and whole answers in `correctness_model.py`.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import correctness_head, correctness_model
from benchmarks.gpu.paged import Part, paged
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import MODELS, TINY
from engine.model.fp8_linear import Fp8Linear
from kernels.activation import swiglu_torch, swiglu_triton
from kernels.fixed_product import fixed_product
from kernels.narrow_product import gated_product, narrow_product, tiles_of
from kernels.norm import add_and_norm_torch, add_and_norm_triton
from kernels.quantize import quantize_rows_torch
from kernels.reach_work import FIXED, SplitRule
from kernels.rope_and_kv import Rotation, rope_and_kv_torch, rope_and_kv_triton

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The most that a kernel may be off, relative."""


def run(section: Section) -> None:
    """One row per check, each with what it found, its bound and whether it passed."""
    for dtype in BOUNDS:
        kind = str(dtype).removeprefix("torch.")
        section.row(f"norm, {kind}", partial(norm, section, dtype))
        section.row(f"swiglu, {kind}", partial(swiglu, section, dtype))
        section.row(f"rope and K/V, {kind}", partial(rope_and_kv, section, dtype))
        for name, rule in (("chosen splits", SplitRule()), ("fixed splits", FIXED)):
            section.row(f"reach attention, {name}, {kind}", partial(attention, section, dtype, rule))
    section.row("reach attention, fixed splits, bits", partial(fixed_bits, section))
    section.row("fp8 product, bfloat16", partial(fp8_product, section))
    if section.triton:
        section.row("fixed product, bfloat16", partial(fixed_tiles, section))
        for rows in (1, 17, 32, 64):
            section.row(f"narrow products, {rows} rows, bfloat16", partial(narrow, section, torch.bfloat16, rows))
    correctness_head.run(section)
    correctness_model.run(section)


def off(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| over all numbers; inf where one is not a number."""
    error = float((got.double() - want).norm() / want.norm())
    return error if math.isfinite(error) else math.inf


def judged(error: float, dtype: torch.dtype, rows: int) -> Row:
    """One row of the result."""
    return {"rows": rows, "off": error, "bound": BOUNDS[dtype], "passed": error <= BOUNDS[dtype]}


def norm(section: Section, dtype: torch.dtype) -> Row:
    """Residual sum and RMSNorm; the sum as the kernel rounded it is what is normed."""
    config = TINY if section.tiny else MODELS["14B"]
    rows, draw = 77, section.draw(1)
    x, change, weight = (
        torch.randn(shape, generator=draw, device=section.device).to(dtype)
        for shape in ((rows, config.hidden_size), (rows, config.hidden_size), (config.hidden_size,))
    )
    form = add_and_norm_triton if section.triton else add_and_norm_torch
    total, normed = form(x, change, weight, config.rms_norm_eps)
    wide = total.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight.double()
    return judged(max(off(total, x.double() + change.double()), off(normed, want)), dtype, rows)


def swiglu(section: Section, dtype: torch.dtype) -> Row:
    """gate * sigmoid(gate) * up."""
    config = TINY if section.tiny else MODELS["14B"]
    rows = 77
    gate_up = 3 * torch.randn(rows, 2 * config.intermediate_size, generator=section.draw(2), device=section.device)
    gate_up = gate_up.to(dtype)
    got = (swiglu_triton if section.triton else swiglu_torch)(gate_up)
    gate, up = gate_up.double().chunk(2, dim=-1)
    return judged(off(got, gate * torch.sigmoid(gate) * up), dtype, rows)


def sides(section: Section, seed: int, rows: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """`rows` rows of an MLP's input and its first weight."""
    config = TINY if section.tiny else MODELS["14B"]
    draw = section.draw(seed)
    shapes = ((rows, config.hidden_size), (2 * config.intermediate_size, config.hidden_size))
    return [torch.randn(shape, generator=draw, device=section.device).to(dtype) for shape in shapes]


def fp8_product(section: Section) -> Row:
    """The layers' product with FP8 on both sides, against float64 on the same FP8 numbers as PyTorch rounds them."""
    rows = 77
    x, weight = sides(section, 9, rows)
    left, right = (quantize_rows_torch(side).restored(torch.float64) for side in (x, weight))
    return judged(off(Fp8Linear(weight)(x), left @ right.t()), torch.bfloat16, rows)


def fixed_tiles(section: Section) -> Row:
    """A product in fixed tiles, against float64; its rows in batches of other sizes must have the same bits."""
    rows = 200
    x, weight = sides(section, 10, rows)
    got = fixed_product(x, weight)
    parts = ((0, 1), (3, 35), (60, 190))
    alike = all(torch.equal(fixed_product(x[first:end], weight), got[first:end]) for first, end in parts)
    row = judged(off(got, x.double() @ weight.double().t()), torch.bfloat16, rows)
    return row | {"alike": alike, "passed": row["passed"] and alike}


def narrow(section: Section, dtype: torch.dtype, rows: int) -> Row:
    """A product of few rows whose inputs are split, three times in a row, and a gated one, against float64."""
    config = TINY if section.tiny else MODELS["14B"]
    x, weight = sides(section, 11, rows, dtype)
    few = weight[: config.hidden_size]
    arrivals = torch.zeros(tiles_of(len(few)), dtype=torch.int32, device=section.device)
    first, *others = (narrow_product(x, few, arrivals) for _ in range(3))
    alike = all(torch.equal(other, first) for other in others) and not bool(arrivals.any())
    gate, up = (x.double() @ weight.double().t()).chunk(2, dim=-1)
    error = max(
        off(first, x.double() @ few.double().t()),
        off(gated_product(x, weight), gate * torch.sigmoid(gate) * up),
    )
    row = judged(error, dtype, rows)
    return row | {"alike": alike, "passed": row["passed"] and alike}


def rope_and_kv(section: Section, dtype: torch.dtype) -> Row:
    """Queries and the whole K/V afterwards: what no token writes must be what it was."""
    config = TINY if section.tiny else MODELS["14B"]
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    tokens, draw = 77, section.draw(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=section.device)

    angles = 3 * normal(tokens, 1, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    scale = 1 + normal(tokens, 1, 1).abs()
    rotation = Rotation(
        torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype), scale.to(dtype)
    )
    projected = normal(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    slots = torch.randperm(3 * tokens, generator=draw, device=section.device)[:tokens]
    kv = normal(3 * tokens, 2, kv_heads, dim).to(dtype)

    stacked = projected.double().view(tokens, heads + 2 * kv_heads, dim)
    first, second = stacked[:, : heads + kv_heads].chunk(2, dim=-1)
    wide_cos, wide_sin = rotation.cos[..., : dim // 2].double(), rotation.signed_sin[..., dim // 2 :].double()
    turned = torch.cat((first * wide_cos - second * wide_sin, second * wide_cos + first * wide_sin), dim=-1)
    want_kv = kv.double()
    want_kv[slots] = torch.stack((turned[:, heads:], stacked[:, heads + kv_heads :]), dim=1)

    form = rope_and_kv_triton if section.triton else rope_and_kv_torch
    query = form(projected, rotation, slots, kv, heads)[:, :heads]
    want_query = turned[:, :heads] * scale.to(dtype).double()
    return judged(max(off(query, want_query), off(kv, want_kv)), dtype, tokens)


def attention(section: Section, dtype: torch.dtype, rule: SplitRule) -> Row:
    """A batch of all kinds: prefill chunks, canvases, a look, single tokens, some with long contexts, and padding."""
    config = TINY if section.tiny else MODELS["14B"]
    parts = [
        Part(0, 1, True),
        Part(300, 101, True),
        Part(37, 32, False),
        Part(333, 32, True),
        Part(96, 32, False),
        Part(1023, 1, True),
    ]
    if not section.tiny:
        parts += [Part(16_384 - 32, 32, False), Part(5000, 1, True), Part(4096, 256, True)]
    batch = paged(section, config, parts, dtype, rule, padding=5)
    got = batch.attend(section.triton)
    row = judged(off(got, batch.attend_double()), dtype, batch.query.shape[0])
    untouched = bool((got[-5:] == 0).all())
    return {**row, "padding_is_zero": untouched, "passed": row["passed"] and untouched}


def fixed_bits(section: Section) -> Row:
    """Under the rule `FIXED` rows of a chunk that is split have the bits that they have in one that is not."""
    config = TINY if section.tiny else MODELS["14B"]
    rows, fewer = 100, 20
    whole = paged(section, config, [Part(480, rows, True)], torch.bfloat16, FIXED)
    together = whole.attend(section.triton)[:fewer]
    alone = whole.first(fewer, FIXED).attend(section.triton)
    return {"rows": fewer, "other_rows": int((alone != together).any(-1).sum()), "passed": torch.equal(alone, together)}
