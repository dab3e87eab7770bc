"""The bare model call: our layers, head and argmax on contiguous padded K/V, with no engine around.

What an engine would cost if scheduling, paging, choosing and streaming were free. It replays the shapes of forwards
that the engine ran: the same query rows at the same positions, the same rows through the head, the same draft rows.
Inputs are laid out before the clock starts. Rows are not padded, and the sequences of one attention call are those
with equally many rows, padded to the longest context among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.transformer import Transformer
from kernels.activation import swiglu_torch
from kernels.attention import reach_mask
from kernels.norm import rms_norm
from kernels.rope_and_kv import rope_and_kv_torch


@dataclass(frozen=True, slots=True)
class Shape:
    """One sequence's part of a forward: `rows` query rows from position `start`, `wanted` of them through the head."""

    rows: int
    start: int
    causal: bool
    drafted: bool
    wanted: int


@dataclass(slots=True)
class Group:
    """Sequences with equally many rows: `sequences` places of the cache from `place` on, and their mask."""

    first_row: int
    sequences: int
    rows: int
    place: int
    keys: int
    mask: Tensor


@dataclass(slots=True)
class BareForward:
    """Inputs of one forward, laid out."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: list[Group]
    draft_rows: Tensor | None
    logit_rows: Tensor
    last_position: int


class BareModel:
    """The engine's weights with a contiguous cache of `sequences` x `keys` places."""

    def __init__(self, model: Transformer, sequences: int, keys: int) -> None:
        config = model.config
        self.model = model
        self.keys = keys
        self.cache = torch.zeros(
            config.num_layers, sequences, keys, 2, config.num_kv_heads, config.head_dim, dtype=model.dtype
        )

    def lay_out(self, shapes: Sequence[Shape]) -> BareForward:
        """Tensors of a forward with these shapes; the token ids do not matter for its time."""
        fold = self.model.config.num_heads // self.model.config.num_kv_heads
        by_rows: dict[int, list[Shape]] = defaultdict(list)
        for shape in shapes:
            by_rows[shape.rows].append(shape)
        positions, slots, groups, drafts, wanted = [], [], [], [], []
        place = row = 0
        for rows, members in by_rows.items():
            keys = max(shape.start + rows for shape in members)
            reach = torch.empty(len(members), rows, dtype=torch.int64)
            first_row, first_place = row, place
            for index, shape in enumerate(members):
                position = torch.arange(shape.start, shape.start + rows)
                positions.append(position)
                slots.append(place * self.keys + position)
                reach[index] = position + 1 if shape.causal else shape.start + rows
                if shape.drafted:
                    drafts.append(torch.arange(row, row + rows))
                wanted.append(torch.arange(row + rows - shape.wanted, row + rows))
                place, row = place + 1, row + rows
            mask = reach_mask(reach.repeat(1, fold).numpy(), keys, self.model.dtype)[:, None]
            groups.append(Group(first_row, len(members), rows, first_place, keys, mask))
        return BareForward(
            token_ids=torch.ones(row, dtype=torch.int64),
            positions=torch.cat(positions),
            slots=torch.cat(slots),
            groups=groups,
            draft_rows=torch.cat(drafts) if drafts else None,
            logit_rows=torch.cat(wanted),
            last_position=max(shape.start + shape.rows for shape in shapes) - 1,
        )

    @torch.inference_mode()
    def run(self, forward: BareForward) -> Tensor:
        """One forward, and the most likely token of every wanted row."""
        model, config = self.model, self.model.config
        heads, kv_heads, dim, eps = config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps
        rotation = model.rotations.at(forward.positions, forward.last_position)
        x = F.embedding(forward.token_ids, model.embedding)
        for index, layer in enumerate(model.layers):
            projected = layer.qkv(rms_norm(x, layer.input_norm, eps))
            cache = self.cache[index]
            flat = cache.view(-1, 2, kv_heads, dim)
            query = rope_and_kv_torch(projected, rotation, forward.slots, flat, heads)[:, :heads]
            attended = self._attend(query, cache, forward.groups)
            out = layer.output(attended)
            if forward.draft_rows is not None and model.adapter is not None:
                down, up = model.adapter.layers[index]
                low = F.linear(attended.index_select(0, forward.draft_rows).to(down.dtype), down)
                out.index_add_(0, forward.draft_rows, (F.linear(low, up) * model.adapter.scale).to(out.dtype))
            x = x + out
            x = x + layer.down(swiglu_torch(layer.gate_up(rms_norm(x, layer.post_norm, eps))))
        if not len(forward.logit_rows):
            return forward.logit_rows
        return model.logits(x, forward.logit_rows).argmax(-1)

    @staticmethod
    def _attend(query: Tensor, cache: Tensor, groups: Sequence[Group]) -> Tensor:
        heads, dim = query.shape[1:]
        kv_heads = cache.shape[3]
        fold = heads // kv_heads
        parts = []
        for group in groups:
            count, rows = group.sequences, group.rows
            q = query[group.first_row : group.first_row + count * rows].view(count, rows, kv_heads, fold, dim)
            q = q.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, fold * rows, dim)
            k, v = cache[group.place : group.place + count, : group.keys].permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=dim**-0.5)
            attended = attended.view(count, kv_heads, fold, rows, dim).permute(0, 3, 1, 2, 4)
            parts.append(attended.reshape(count * rows, heads * dim))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
