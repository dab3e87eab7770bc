"""Random ragged batches for reach attention, and the attention of each row written as a plain loop in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.reach_work import ReachShape, ReachWork, SplitRule, Tiles, WorkSizes, reach_work

GUARD = 64
"""Guard values on either side of a tensor: the interpreter does not check bounds."""
SENTINEL = 77.0


@dataclass(frozen=True)
class Part:
    """One sequence's part of a batch: query rows at positions `start`, `start + 1`, ..."""

    start: int
    rows: int
    causal: bool

    @property
    def end(self) -> int:
        return self.start + self.rows

    def reach(self, row: int) -> int:
        return self.start + row + 1 if self.causal else self.end


@dataclass
class Case:
    """A batch with its K/V. Every sequence has pages of its own in no order, page 0 is the null page.

    Slots that no sequence's text has reached hold `inf`: reading one shows in every number of the row.
    """

    parts: list[Part]
    query: Tensor
    kv: Tensor
    pages: list[list[int]]
    page_size: int
    heads: int

    @property
    def tokens(self) -> int:
        return self.query.shape[0]

    def work(self, tiles: Tiles, rule: SplitRule, buckets: Sequence[WorkSizes] = ()) -> ReachWork:
        return reach_work(
            np.array([part.start for part in self.parts]),
            np.array([part.rows for part in self.parts]),
            np.array([part.causal for part in self.parts]),
            np.concatenate(self.pages),
            np.array([len(own) for own in self.pages]),
            self.tokens,
            ReachShape(self.heads // self.kv.shape[2], self.kv.shape[2], self.page_size, tiles, rule),
            buckets,
        )


def case(
    seed: int,
    parts: list[Part],
    dtype: torch.dtype,
    heads: int = 4,
    kv_heads: int = 1,
    dim: int = 16,
    page_size: int = 32,
    padding: int = 0,
) -> Case:
    draw = torch.Generator().manual_seed(seed)
    held = [-(-part.end // page_size) for part in parts]
    order = (1 + torch.randperm(sum(held), generator=draw)).tolist()
    pages = [[order.pop() for _ in range(count)] for count in held]
    kv = torch.full(((sum(held) + 1) * page_size, 2, kv_heads, dim), float("inf"))
    for part, own in zip(parts, pages, strict=True):
        for position in range(part.end):
            slot = own[position // page_size] * page_size + position % page_size
            kv[slot] = torch.randn(2, kv_heads, dim, generator=draw)
    tokens = sum(part.rows for part in parts) + padding
    # Large enough that the softmax is far from uniform.
    query = 2 * torch.randn(tokens, heads, dim, generator=draw)
    return Case(parts, query.to(dtype), guarded(kv.to(dtype)), pages, page_size, heads)


def expected(batch: Case, scale: float) -> Tensor:
    """float64 `[tokens, heads * dim]`, row by row and head by head; zero for padding rows."""
    tokens, heads, dim = batch.query.shape
    group = heads // batch.kv.shape[2]
    out = torch.zeros(tokens, heads, dim, dtype=torch.float64)
    token = 0
    for part, own in zip(batch.parts, batch.pages, strict=True):
        slots = [own[at // batch.page_size] * batch.page_size + at % batch.page_size for at in range(part.end)]
        known = batch.kv[slots].double()
        for row in range(part.rows):
            seen = known[: part.reach(row)]
            for head in range(heads):
                keys, values = seen[:, 0, head // group], seen[:, 1, head // group]
                scores = keys @ batch.query[token, head].double() * scale
                out[token, head] = scores.softmax(0) @ values
            token += 1
    return out.view(tokens, heads * dim)


def guarded(tensor: Tensor) -> Tensor:
    """The tensor within a larger one whose other values are `SENTINEL`; `guards` reads them."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), SENTINEL, dtype=tensor.dtype)
    buffer[GUARD:-GUARD] = tensor.flatten()
    return buffer[GUARD:-GUARD].view(tensor.shape)


def guards(tensor: Tensor) -> Tensor:
    """The values around a tensor of `guarded`."""
    around = tensor.new_empty(0).set_(tensor.untyped_storage(), 0, (tensor.numel() + 2 * GUARD,), (1,))
    return torch.cat((around[:GUARD], around[-GUARD:]))
