"""Rotary embedding with YaRN frequencies, and the Llama-4 query scale (contract 3.2 and 3.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.rope_and_kv import Rotation

_AT_ONCE = 16_384
"""Positions of a table that are made at a time."""

if TYPE_CHECKING:
    from engine.checkpoint.config import RopeConfig


def yarn_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Inverse frequencies `[head_dim / 2]` float32 of YaRN (arXiv 2309.00071, contract 3.2).

    The attention factor is mscale(factor, mscale) / mscale(factor, mscale_all_dim), see `attention_factor`.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    extrapolated = rope.theta**-exponent
    interpolated = extrapolated / rope.factor

    def correction(rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low = max(math.floor(correction(rope.beta_fast)), 0)
    high = min(math.ceil(correction(rope.beta_slow)), head_dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / span).clamp(0, 1)
    return (interpolated * ramp + extrapolated * (1 - ramp)).float()


def attention_factor(rope: RopeConfig) -> float:
    """Scale of cos and sin: 1.0 for the released checkpoints, whose mscale and mscale_all_dim are both 1."""

    def mscale(value: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * value * math.log(rope.factor) + 1.0

    return mscale(rope.mscale) / mscale(rope.mscale_all_dim)


def rotary(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin `[tokens, 1, head_dim]`, made in float32 and cast to `dtype` (contract 3.2).

    Both halves of a head share their angles; sin is negative in the first half, so that rotating is two products
    (`kernels/rope_and_kv.py`).
    """
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat((cos, cos), dim=-1).to(dtype)[:, None], torch.cat((-sin, sin), dim=-1).to(dtype)[:, None]


def query_scale(positions: Tensor, rope: RopeConfig, dtype: torch.dtype) -> Tensor:
    """s(p) = 1 + beta * ln(1 + floor(p / original_max)) as `[tokens, 1, 1]` (contract 3.3)."""
    periods = torch.div(positions, rope.original_max_position_embeddings, rounding_mode="floor")
    return (1 + rope.llama_4_scaling_beta * torch.log1p(periods.float())).to(dtype)[:, None, None]


class Rotations:
    """What tokens are turned by (`kernels/rope_and_kv.py`), for the positions of any batch.

    Attributes:
        frequencies: float32 `[head_dim / 2]`.
    """

    def __init__(
        self, rope: RopeConfig, head_dim: int, dtype: torch.dtype, device: torch.device, positions: int | None = None
    ) -> None:
        """`positions`: so many from 0 on are kept in a table, and no batch may go beyond them. On a GPU a forward then
        takes three gathers, where to make its own anew takes twenty small kernels. None = no table."""
        self.frequencies = yarn_frequencies(rope, head_dim).to(device)
        self._rope, self._dtype, self._factor = rope, dtype, attention_factor(rope)
        self._table = None if positions is None else self._made_of_all(positions)

    def at(self, positions: Tensor, last_position: int) -> Rotation:
        """Of `positions`, int64 `[tokens]`, up to `last_position`. The query scale is left out where it is 1 for all,
        but not with a table, where no shape may depend on positions."""
        if self._table is not None:
            return Rotation(*(part.index_select(0, positions) for part in self._table))
        scaled = last_position >= self._rope.original_max_position_embeddings
        cos, sin = rotary(positions, self.frequencies, self._factor, self._dtype)
        return Rotation(cos, sin, query_scale(positions, self._rope, self._dtype) if scaled else None)

    def _made_of_all(self, positions: int) -> tuple[Tensor, Tensor, Tensor]:
        """The table, a part at a time: in float32 all would take more memory than the table."""
        parts = [
            (*rotary(some, self.frequencies, self._factor, self._dtype), query_scale(some, self._rope, self._dtype))
            for first in range(0, positions, _AT_ONCE)
            for some in [torch.arange(first, min(first + _AT_ONCE, positions), device=self.frequencies.device)]
        ]
        cos, sin, scale = (torch.cat(column) for column in zip(*parts, strict=True))
        return cos, sin, scale
