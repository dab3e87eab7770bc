"""Ragged batches over paged K/V on the device, for checking and timing reach attention and whole forwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.section import Section
from benchmarks.gpu.shapes import BLOCK
from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from kernels.reach_attention import reach_attention_reference, reach_attention_triton
from kernels.reach_work import ReachShape, ReachWork, SplitRule, reach_work, tiles_for


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's part of a batch: `rows` query rows from position `start`."""

    start: int
    rows: int
    causal: bool

    @property
    def end(self) -> int:
        return self.start + self.rows


@dataclass(slots=True)
class Paged:
    """A batch and its K/V.

    Attributes:
        query: `[tokens, heads, head_dim]`. kv: `[layers, slots, 2, kv_heads, head_dim]`, each layer's own.
        pages: each part's page numbers, no two alike and in no order. work: on the device.
    """

    parts: list[Part]
    query: Tensor
    kv: Tensor
    pages: list[np.ndarray]
    work: ReachWork
    heads: int

    @property
    def scale(self) -> float:
        return float(self.query.shape[-1] ** -0.5)

    def slots(self, part: int) -> Tensor:
        """Slots of the keys of a part, in order: int64 `[end]`."""
        position = np.arange(self.parts[part].end)
        slots = self.pages[part][position // BLOCK] * BLOCK + position % BLOCK
        return torch.from_numpy(slots).to(self.kv.device)

    def cut(self, rule: SplitRule) -> Paged:
        """The same batch, its contexts split by another rule."""
        return replace(self, work=_work(self.parts, self.pages, self.query, self.kv, rule))

    def first(self, rows: int, rule: SplitRule) -> Paged:
        """So many rows of a batch of one part by themselves: what a shorter chunk of a prompt would be."""
        (part,) = self.parts
        parts = [replace(part, rows=rows)]
        query = self.query[:rows]
        return replace(self, parts=parts, query=query, work=_work(parts, self.pages, query, self.kv, rule))

    def attend(self, triton: bool, layer: int = 0) -> Tensor:
        """Reach attention over one layer: the kernel, or its plain form."""
        form = reach_attention_triton if triton else reach_attention_reference
        return form(self.query, self.kv[layer], self.work, self.heads, self.scale)

    def attend_double(self) -> Tensor:
        """The first layer's attention in float64, part by part: `[tokens, heads * head_dim]`."""
        tokens, heads, dim = self.query.shape
        group = heads // self.kv.shape[3]
        out = torch.zeros(tokens, heads, dim, dtype=torch.float64, device=self.query.device)
        row = 0
        for index, part in enumerate(self.parts):
            keys, values = self.kv[0, self.slots(index)].double().repeat_interleave(group, dim=2).unbind(1)
            query = self.query[row : row + part.rows].double()
            scores = torch.einsum("rhd,khd->hrk", query, keys) * self.scale
            if part.causal:
                reach = torch.arange(part.start + 1, part.end + 1, device=query.device)
                hidden = torch.arange(part.end, device=query.device) >= reach[:, None]
                scores = scores.masked_fill(hidden, float("-inf"))
            out[row : row + part.rows] = torch.einsum("hrk,khd->rhd", scores.softmax(-1), values)
            row += part.rows
        return out.view(tokens, heads * dim)


def paged(
    section: Section,
    config: ModelConfig,
    parts: list[Part],
    dtype: torch.dtype,
    rule: SplitRule | None = None,
    layers: int = 1,
    padding: int = 0,
) -> Paged:
    """Random queries and K/V. Slots past a sequence's end hold inf: one that is read shows in the answer."""
    draw = section.draw(len(parts))
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    held = [-(-part.end // BLOCK) for part in parts]
    order = 1 + np.random.default_rng(7).permutation(sum(held))
    pages = np.split(order, np.cumsum(held)[:-1])
    shape = (layers, (sum(held) + 1) * BLOCK, 2, kv_heads, dim)
    kv = torch.empty(shape, dtype=dtype, device=section.device).normal_(generator=draw)
    kv[:, :BLOCK] = float("inf")
    for part, own in zip(parts, pages, strict=True):
        used = part.end % BLOCK
        if used:
            last = int(own[-1]) * BLOCK
            kv[:, last + used : last + BLOCK] = float("inf")
    tokens = sum(part.rows for part in parts) + padding
    # Large enough that the softmax is far from uniform.
    query = torch.empty(tokens, heads, dim, dtype=dtype, device=section.device).normal_(0, 2, generator=draw)
    work = _work(parts, list(pages), query, kv, rule or SplitRule())
    return Paged(parts, query, kv, list(pages), work, heads)


def _work(parts: list[Part], pages: list[np.ndarray], query: Tensor, kv: Tensor, rule: SplitRule) -> ReachWork:
    """The batch's work list, on its device."""
    tokens, heads, _ = query.shape
    kv_heads = kv.shape[3]
    work = reach_work(
        np.array([part.start for part in parts]),
        np.array([part.rows for part in parts]),
        np.array([part.causal for part in parts]),
        np.concatenate(pages),
        np.array([len(own) for own in pages]),
        tokens,
        ReachShape(heads // kv_heads, kv_heads, BLOCK, tiles_for(query.dtype), rule),
    )
    return work.with_arrays(tuple(array.to(query.device) for array in work.arrays()))


def canvases(count: int, context: int, vocabulary: int, seed: int = 3) -> list[Segment]:
    """So many canvases of random tokens, each after `context` tokens in pages of its own, all rows wanted."""
    draw = np.random.default_rng(seed)
    held = -(-(context + BLOCK) // BLOCK)
    order = (1 + draw.permutation(count * held)).tolist()
    return [
        Segment(
            tokens=draw.integers(0, vocabulary, BLOCK).tolist(),
            start=context,
            causal=False,
            drafted=False,
            wanted=list(range(BLOCK)),
            pages=order[index * held : (index + 1) * held],
        )
        for index in range(count)
    ]


def pages_of(count: int, context: int) -> int:
    """Pages that `canvases` uses, the null page included."""
    return count * -(-(context + BLOCK) // BLOCK) + 1
