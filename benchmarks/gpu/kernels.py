"""Kernel by kernel against torch eager and torch.compile, on the shapes of the 14B.

Times are those of kernels in CUDA graphs, one after the other (`timing.py`), so host time counts for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import kernels_head, kernels_products, rivals
from benchmarks.gpu.paged import Paged, Part, paged
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import BLOCK, MODELS, TINY
from benchmarks.gpu.timing import copies
from kernels.activation import swiglu_torch, swiglu_triton
from kernels.norm import add_and_norm_torch, add_and_norm_triton
from kernels.reach_work import FIXED
from kernels.rope_and_kv import Rotation, rope_and_kv_torch, rope_and_kv_triton

CONTEXTS = (16_384, 512, 4096)
"""The one that a bar asks for first."""
TIMES = 8
"""Calls on the same activations in one graph: they come from the product before them, so from L2 in a forward too."""


def run(section: Section) -> None:
    """One row per kernel and shape. What the bars ask for and what explains them comes first; of it the heads last,
    because compiling torch's forms of them takes longest."""
    contexts = (64,) if section.tiny else CONTEXTS
    cells = [(count, context) for count in (1, 32) for context in contexts]
    for count, context in cells[:1]:
        attention_row(section, count, context)
    kernels_products.run(section)
    kernels_head.run(section)
    for count, context in cells[1:]:
        attention_row(section, count, context)
    for rows in (32,) if section.tiny else (32, 1024):
        forms: tuple[tuple[str, Callable[[Section, str, int], Row]], ...] = (
            ("norm + residual", norm),
            ("SwiGLU", swiglu),
            ("rope + scale + K/V write", rope_and_kv),
        )
        for title, form in forms:
            name = f"{title}, {rows} rows"
            section.row(name, partial(form, section, name, rows))


def attention_row(section: Section, count: int, context: int) -> None:
    name = f"reach attention, {count} x {BLOCK} rows at {context}"
    section.row(name, partial(attention, section, name, count, context))


def attention(section: Section, name: str, count: int, context: int) -> Row:
    """Canvases over contexts of their own, K/V colder than L2: as many layers in the graph as that takes.

    `fixed_ms`: the same with splits that do not depend on the batch.
    """
    config = TINY if section.tiny else MODELS["14B"]
    keys = context + BLOCK
    bytes_each = count * keys * config.kv_bytes_per_token("bfloat16") // config.num_layers
    layers = copies(section.clock, bytes_each)
    parts = [Part(context, BLOCK, causal=False)] * count
    batch = paged(section, config, parts, torch.bfloat16, layers=layers)
    slots = torch.stack([batch.slots(index) for index in range(count)])
    query = batch.query.view(count, BLOCK, config.num_heads, config.head_dim)
    inputs = [(query, batch.kv[layer], slots, batch.scale) for layer in range(layers)]
    ours = [partial(batch.attend, section.triton, layer) for layer in range(layers)]
    eager = [partial(rivals.attention, *given) for given in inputs]
    row = compared_and_gathered(section, name, batch, ours, eager, inputs, slots)
    fixed = batch.cut(FIXED)
    row["fixed_ms"] = section.clock.kernel_ms([partial(fixed.attend, section.triton, layer) for layer in range(layers)])
    achieved = bytes_each / row["ours_ms"] * 1e3
    share = None if section.ceilings is None else achieved / section.ceilings.bandwidth
    return {"layers": layers, "bytes": bytes_each, **row, "bytes_per_s": achieved, "of_bandwidth": share}


def compared_and_gathered(
    section: Section,
    name: str,
    batch: Paged,
    ours: list[partial[Tensor]],
    eager: list[partial[Tensor]],
    inputs: list[tuple[Tensor, Tensor, Tensor, float]],
    slots: Tensor,
) -> Row:
    """`rivals.compared`, and torch's attention on K/V that needs no gathering, which no paged engine has."""
    row = rivals.compared(section, name, ours, eager, rivals.attention, inputs)
    query, _, _, scale = inputs[0]
    contiguous = [kv[slots].permute(2, 0, 3, 1, 4).contiguous().unbind(0) for kv in batch.kv]

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), keys, values, scale=scale, enable_gqa=True
        )

    row["contiguous_ms"] = section.clock.kernel_ms([partial(attend, *pair) for pair in contiguous])
    return row


def norm(section: Section, name: str, rows: int) -> Row:
    config = TINY if section.tiny else MODELS["14B"]
    x, change, weight = (_normal(section, *shape) for shape in ((rows, -1), (rows, -1), (-1,)))
    given = (x, change, weight, config.rms_norm_eps)
    ours = partial(add_and_norm_triton if section.triton else add_and_norm_torch, *given)
    return _small(section, name, ours, partial(add_and_norm_torch, *given), add_and_norm_torch, given)


def swiglu(section: Section, name: str, rows: int) -> Row:
    config = TINY if section.tiny else MODELS["14B"]
    given = (_normal(section, rows, 2 * config.intermediate_size),)
    ours = partial(swiglu_triton if section.triton else swiglu_torch, *given)
    return _small(section, name, ours, partial(swiglu_torch, *given), swiglu_torch, given)


def rope_and_kv(section: Section, name: str, rows: int) -> Row:
    """Slots in no order among 4,096 of one layer."""
    config = TINY if section.tiny else MODELS["14B"]
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    projected = _normal(section, rows, (heads + 2 * kv_heads) * dim)
    rotation = Rotation(_normal(section, rows, 1, dim), _normal(section, rows, 1, dim), _normal(section, rows, 1, 1))
    slots = torch.randperm(4096, generator=section.draw(4), device=section.device)[:rows]
    kv = _normal(section, 4096, 2, kv_heads, dim)
    given = (projected, rotation.cos, rotation.signed_sin, rotation.query_scale, slots, kv)

    def plain(projected: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, slots: Tensor, kv: Tensor) -> Tensor:
        return rope_and_kv_torch(projected, Rotation(cos, sin, scale), slots, kv, heads)

    form = rope_and_kv_triton if section.triton else rope_and_kv_torch
    ours = partial(form, projected, rotation, slots, kv, heads)
    return _small(section, name, ours, partial(plain, *given), plain, given)


def _small(
    section: Section,
    name: str,
    ours: Callable[[], object],
    eager: Callable[[], object],
    compilable: Callable[..., object],
    given: tuple[object, ...],
) -> Row:
    return rivals.compared(section, name, [ours] * TIMES, [eager] * TIMES, compilable, [given] * TIMES)


def _normal(section: Section, *shape: int) -> Tensor:
    """Random bf16 of that shape; -1 is the hidden size."""
    config = TINY if section.tiny else MODELS["14B"]
    sizes = [config.hidden_size if size == -1 else size for size in shape]
    return torch.randn(sizes, dtype=torch.bfloat16, device=section.device, generator=section.draw(sum(sizes)))
