"""The layers' products of few rows: `kernels/narrow_product.py` against the library's, weights colder than L2.

Both read the weight once; `of_bandwidth` is that reading over the measured bandwidth. `eager_ms` is torch's product,
for gate and up with the kernel of SwiGLU after it, as the engine runs them without `narrow_products`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.floors import BYTES
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import MODELS, STANDARD_DEVIATION, TINY
from benchmarks.gpu.timing import copies
from engine.checkpoint.config import ModelConfig
from kernels.activation import swiglu_torch, swiglu_triton
from kernels.narrow_product import gated_product, narrow_product, tiles_of


def run(section: Section) -> None:
    """Rows `product qkv`, `output`, `gate and up`, `down`: one canvas and two."""
    config = TINY if section.tiny else MODELS["14B"]
    for rows in (32, 64):
        for title, (outputs, inputs) in shapes(config).items():
            make = partial(product, section, title == "gate and up", outputs, inputs, rows)
            section.row(f"product {title}, {rows} rows", make)


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's products."""
    return {
        "qkv": (config.q_size + 2 * config.kv_size, config.hidden_size),
        "output": (config.hidden_size, config.q_size),
        "gate and up": (2 * config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
    }


def product(section: Section, gated: bool, outputs: int, inputs: int, rows: int) -> Row:
    draw, clock = section.draw(outputs + inputs), section.clock
    bytes_each = BYTES * outputs * inputs

    def normal(deviation: float, *shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16, device=section.device)
        return empty.normal_(0, deviation, generator=draw)

    x = normal(1.0, rows, inputs)
    weights = [normal(STANDARD_DEVIATION, outputs, inputs) for _ in range(copies(clock, bytes_each))]
    swiglu = swiglu_triton if section.triton else swiglu_torch
    arrivals = torch.zeros(tiles_of(outputs), dtype=torch.int32, device=section.device)

    def library(weight: Tensor) -> Tensor:
        return swiglu(F.linear(x, weight)) if gated else F.linear(x, weight)

    def narrow(weight: Tensor) -> Tensor:
        return gated_product(x, weight) if gated else narrow_product(x, weight, arrivals)

    def measured(form: Callable[[Tensor], Tensor]) -> float:
        return clock.kernel_ms([partial(form, weight) for weight in weights])

    ours_ms, eager_ms = measured(narrow if section.triton else library), measured(library)
    row: Row = {"rows": rows, "bytes": bytes_each, "ours_ms": ours_ms, "eager_ms": eager_ms}
    row |= {"over_eager": eager_ms / ours_ms, "of_bandwidth": None, "eager_of_bandwidth": None}
    if section.ceilings is not None:
        least_ms = bytes_each / section.ceilings.bandwidth * 1e3
        row |= {"of_bandwidth": least_ms / ours_ms, "eager_of_bandwidth": least_ms / eager_ms}
    return row
