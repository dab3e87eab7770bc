"""What the machine can do: a large copy and a large product, measured, never a data sheet."""

from __future__ import annotations

import torch

from benchmarks.gpu.floors import Ceilings
from benchmarks.gpu.section import Row, Section


def run(section: Section) -> None:
    """Rows `copy` (bytes/s, read and written) and `product` (bf16 FLOP/s)."""
    section.row("copy", lambda: copy(section))
    section.row("product", lambda: product(section))


def copy(section: Section) -> Row:
    """A copy within device memory, far larger than any cache."""
    size = 1 << (22 if section.tiny else 32)
    source = torch.empty(size // 4, dtype=torch.int32, device=section.device)
    source.random_(generator=section.draw(1))
    target = torch.empty_like(source)
    taken_ms = section.clock.run_ms(lambda: target.copy_(source))
    return {"bytes": 2 * size, "ms": taken_ms, "bytes_per_s": 2 * size / taken_ms * 1e3}


def product(section: Section) -> Row:
    """The best of some large square products of random numbers, weights as the model keeps them (outputs first)."""
    best, rates = 0.0, {}
    for size in (128,) if section.tiny else (4096, 8192, 12_288):
        draw = section.draw(size)
        left, right = (
            torch.randn(size, size, dtype=torch.bfloat16, device=section.device, generator=draw) for _ in range(2)
        )
        out = torch.empty_like(left)
        taken_ms = section.clock.run_ms(lambda left=left, right=right, out=out: torch.mm(left, right.t(), out=out))
        rates[str(size)] = 2 * size**3 / taken_ms * 1e3
        best = max(best, rates[str(size)])
    return {"flop_per_s": best, "by_size": rates}


def measured(rows: list[Row]) -> Ceilings | None:
    """The ceilings, where both rows are there."""
    by_name = {row["name"]: row for row in rows}
    if {"copy", "product"} - by_name.keys():
        return None
    return Ceilings(by_name["copy"]["bytes_per_s"], by_name["product"]["flop_per_s"])
