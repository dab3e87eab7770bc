"""The plain training forward of the family's decoder (contract section 3): any mask, whole rows, float32."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shape:
    """The sizes of the small model; names as in config.json."""

    vocab_size: int = 768
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    block_size: int = 32
    rope: dict[str, float] = field(
        default_factory=lambda: {
            "factor": 16.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
            "rope_theta": 1000.0,
        }
    )


def inverse_frequencies(shape: Shape) -> Tensor:
    """YaRN's frequencies, contract 3.2. [head_dim / 2], float32."""
    rope, dim = shape.rope, shape.head_dim
    theta, original = rope["rope_theta"], rope["original_max_position_embeddings"]

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(correction(rope["beta_fast"])), 0)
    high = min(math.ceil(correction(rope["beta_slow"])), dim - 1)
    extrapolated = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return extrapolated / rope["factor"] * ramp + extrapolated * (1 - ramp)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding with split halves. x [B, H, L, D], cos and sin [B, 1, L, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Projections(nn.Module):
    """Linear layers without bias, by name: (inputs, outputs)."""

    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Layer(nn.Module):
    """One pre-norm decoder layer. The state dict has the family's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, inner, dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
        queries, keys = shape.num_attention_heads * dim, shape.num_key_value_heads * dim
        self.shape = shape
        self.input_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.self_attn = Projections(
            q_proj=(hidden, queries), k_proj=(hidden, keys), v_proj=(hidden, keys), o_proj=(queries, hidden)
        )
        self.mlp = Projections(gate_proj=(hidden, inner), up_proj=(hidden, inner), down_proj=(inner, hidden))

    def forward(
        self, x: Tensor, turns: tuple[Tensor, ...], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, L, hidden]; `turns` are cos and sin for keys, then the same for queries with their scale."""
        shape, attention, mlp = self.shape, self.self_attn, self.mlp
        batch, length, _ = x.shape
        heads, groups, dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        # One product for q, k and v, and one for gate and up: small products leave a core idle.
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        projected = F.linear(self.input_layernorm(x), weight).view(batch, length, heads + 2 * groups, dim)
        q, k, v = torch.split(projected.transpose(1, 2), [heads, groups, groups], dim=1)
        k = rotate(k, turns[0], turns[1])
        q = rotate(q, turns[2], turns[3])
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        repeat = heads // groups
        # In float32 even when the rest is in bfloat16: on a CPU its backward pass takes a third of the time.
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                q.float(),
                k.float().repeat_interleave(repeat, 1),
                v.float().repeat_interleave(repeat, 1),
                attn_mask=mask,
                is_causal=mask is None,
            )
        x = x + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, heads * dim))
        weight = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        gate, up = F.linear(self.post_attention_layernorm(x), weight).chunk(2, dim=-1)
        return x + mlp.down_proj(F.silu(gate) * up), (k, v)


class Network(nn.Module):
    """The decoder and its one head. `state_dict()` carries the family's tensor names (contract 2.1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder: Any = nn.Module()
        self.encoder.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.encoder.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.encoder.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.diffusion_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        positions = torch.arange(shape.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(shape)).repeat(1, 2)
        rope = shape.rope
        scale = 1 + rope["llama_4_scaling_beta"] * torch.log1p(
            torch.floor(positions / rope["original_max_position_embeddings"])
        )
        # Scaling the query's cos and sin is the same as scaling the turned query (contract 3.3), and free.
        turns = torch.stack((angles.cos(), angles.sin(), angles.cos() * scale[:, None], angles.sin() * scale[:, None]))
        self.register_buffer("turns", turns, persistent=False)
        self.turns: Tensor
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            elif "proj" in name:
                nn.init.normal_(parameter, std=shape.hidden_size**-0.5)
            elif "embed" in name:
                # Unit size: a token must not drown in what the layers add to it, or copying never forms.
                nn.init.normal_(parameter)
            elif "head" in name:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None = None, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Normed hidden states [B, L, hidden] and each layer's keys and values.

        ids and positions are int64 [B, L]; mask is bool [B, 1, L, past + L] (true: visible), None for causal rows.
        """
        turns = tuple(part[:, None] for part in self.turns[:, positions])  # each [B, 1, L, D]
        x = self.encoder.embed_tokens(ids)
        present: KeyValues = []
        for index, layer in enumerate(self.encoder.layers):
            x, key_values = layer(x, turns, mask, None if past is None else past[index])
            present.append(key_values)
        return self.encoder.norm(x), present
