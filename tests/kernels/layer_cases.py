"""Random inputs of the small kernels of a layer, and what each computes written from its formula in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.rope_and_kv import Rotation


@dataclass
class RopeCase:
    """Arguments of `rope_and_kv_torch`, in its order."""

    projected: Tensor
    rotation: Rotation
    slots: Tensor
    kv: Tensor
    heads: int


def rope_case(
    seed: int, tokens: int, heads: int, kv_heads: int, dim: int, scaled: bool, dtype: torch.dtype
) -> RopeCase:
    """Tokens in slots in no order; K/V begins with numbers that must stay where no token writes."""
    draw = torch.Generator().manual_seed(seed)
    angles = 6 * torch.rand(tokens, 1, dim // 2, generator=draw)
    cos, sin = angles.cos(), angles.sin()
    slots = 2 * tokens + 3
    return RopeCase(
        projected=torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=draw).to(dtype),
        rotation=Rotation(
            torch.cat((cos, cos), dim=-1).to(dtype),
            torch.cat((-sin, sin), dim=-1).to(dtype),
            (1 + torch.rand(tokens, 1, 1, generator=draw)).to(dtype) if scaled else None,
        ),
        slots=torch.randperm(slots, generator=draw)[:tokens],
        kv=torch.randn(slots, 2, kv_heads, dim, generator=draw).to(dtype),
        heads=heads,
    )


def double_rope(case: RopeCase) -> tuple[Tensor, Tensor]:
    """Queries `[tokens, heads, dim]` and the whole K/V afterwards: each pair (i, i + dim / 2) turned by its angle."""
    _, _, kv_heads, dim = case.kv.shape
    half = dim // 2
    kv = case.kv.double()
    query = torch.empty(len(case.slots), case.heads, dim, dtype=torch.float64)
    for token, slot in enumerate(case.slots.tolist()):
        row = case.projected[token].double().view(-1, dim)
        cos = case.rotation.cos[token, 0, :half].double()
        sin = case.rotation.signed_sin[token, 0, half:].double()
        for head in range(case.heads + kv_heads):
            left, right = row[head, :half], row[head, half:]
            turned = torch.cat((left * cos - right * sin, right * cos + left * sin))
            if head >= case.heads:
                kv[slot, 0, head - case.heads] = turned
                continue
            scale = case.rotation.query_scale
            query[token, head] = turned if scale is None else turned * scale[token].double().view(())
        kv[slot, 1] = row[case.heads + kv_heads :]
    return query, kv


def double_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def double_swiglu(gate_up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
