"""Random blocks to audit, and the rule as a plain loop, written from its words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.audit import EXACT, KEEP


def random_blocks(seed: int, blocks: int, width: int) -> list[Tensor]:
    """Arguments of `accept`: most tokens pass, so that all lengths come up; the padding would fail."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    canvas = integers(0, 30, blocks, width)
    length = integers(1, width + 1, blocks)
    agrees = torch.rand(blocks, width, generator=draw) < 0.9
    agrees &= torch.arange(width) < length[:, None]
    picks = torch.where(agrees, canvas.roll(-1, dims=1), integers(0, 30, blocks, width))
    ratios = torch.where(agrees, 0.0, -3 * torch.rand(blocks, width, generator=draw))
    ratios[torch.rand(blocks, width, generator=draw) < 0.02] = float("nan")
    floors = torch.tensor([KEEP, EXACT, math.log(0.3), math.log(0.9), -1.0])
    ratios[torch.rand(blocks, width, generator=draw) < 0.05] = -1.0  # exactly at a floor: passes
    return [canvas, picks, ratios, length, floors[integers(0, 5, blocks)]]


def accepted(arguments: list[Tensor], block: int) -> tuple[int, int]:
    """Tokens that stay, and AR's own after them."""
    canvas, picks, ratios, length, floor = (argument[block].tolist() for argument in arguments)
    kept = 1
    while kept < length:
        if floor == EXACT:
            passes = picks[kept - 1] == canvas[kept]
        else:
            passes = floor == KEEP or math.isnan(ratios[kept - 1]) or ratios[kept - 1] >= floor
        if not passes:
            break
        kept += 1
    return kept, picks[kept - 1]
