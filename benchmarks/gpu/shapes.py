"""The models that are measured: the released shapes (contract 1.1 to 1.4), filled with random weights on the device.

No file is read: a tensor is drawn when the model takes it, from a seed of its own name, so two models built alike have
the same weights. Random data and no zeros, because products of zeros run faster than real ones.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.checkpoint.config import ModelConfig, RopeConfig
from engine.checkpoint.weights import DraftAdapter, expected_adapter_tensors, expected_tensors
from engine.model.linear import Linear
from engine.model.transformer import Product, Transformer

BLOCK = 32
"""Tokens of a canvas and of a page of K/V."""
ADAPTER_RANK, ADAPTER_SCALE = 128, 4.0
"""The released draft adapters' (contract 2.2)."""
STANDARD_DEVIATION = 0.02
"""Of random weights: `initializer_range` of the family."""
FAVOURITE = 7
"""The token that an agreeing model chooses everywhere; no special id."""

_YARN = RopeConfig(
    theta=1e6,
    factor=16.0,
    original_max_position_embeddings=16_384,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)


def _config(layers: int, hidden: int, inner: int, theta: float = 1e6) -> ModelConfig:
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=131_072,
        rms_norm_eps=1e-5,
        max_position_embeddings=262_144,
        rope=replace(_YARN, theta=theta),
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(11,),
        mask_token_id=100,
        pad_token_id=None,
        block_size=BLOCK,
        dtype="bfloat16",
    )


MODELS: dict[str, ModelConfig] = {
    "3B": _config(26, 3072, 9216),
    "8B": _config(34, 4096, 14_336),
    "14B": _config(40, 5120, 16_384, theta=1e9),
}
TINY = replace(
    MODELS["14B"],
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=1,
    head_dim=16,
    vocab_size=512,
    max_position_embeddings=4096,
)
"""Every proportion that the code cares about (four heads a K/V head), small enough for a CPU."""


@dataclass(slots=True)
class RandomWeights:
    """A source of checkpoint tensors as `Transformer` takes them (`engine.checkpoint.weights.Weights`).

    Attributes:
        agreeing: a model that chooses `FAVOURITE` in every row, drafting or not, so that self-speculation accepts all:
            embeddings share one large direction, which is also the favourite's row of the head, and the layers' outputs
            are small beside it. All products stay those of random numbers of full length.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    agreeing: bool = False

    def pop(self, name: str) -> Tensor:
        """The tensor of that name, drawn now; it can be drawn again."""
        shape = expected_tensors(self.config)[name]
        if len(shape) == 1:
            return 1 + 0.1 * self._normal(name, shape, 1.0)
        if self.agreeing and ("o_proj" in name or "down_proj" in name):
            return self._normal(name, shape, 1e-5)
        drawn = self._normal(name, shape, STANDARD_DEVIATION)
        if self.agreeing and name == "encoder.embed_tokens.weight":
            drawn += self._direction()
        if self.agreeing and name == "diffusion_head.weight":
            # A logit of about 25 over all others' 6, far above bf16's steps.
            drawn[FAVOURITE] = self._direction() * (25 / self.config.hidden_size)
        return drawn

    def adapter(self) -> DraftAdapter:
        """A draft adapter, with a small B: what it adds must not change an agreeing model's choice."""
        shapes = expected_adapter_tensors(self.config, ADAPTER_RANK)
        drawn = [
            self._normal(name, shape, STANDARD_DEVIATION if "lora_A" in name else 1e-5)
            for name, shape in shapes.items()
        ]
        pairs = tuple((drawn[index], drawn[index + 1]) for index in range(0, len(drawn), 2))
        return DraftAdapter(pairs, ADAPTER_SCALE)

    def _direction(self) -> Tensor:
        return self._normal("direction", (self.config.hidden_size,), 1.0)

    def _normal(self, name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
        draw = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()) ^ self.seed)
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0, deviation, generator=draw)


class Widened:
    """The same weights in float32: what a bf16 model's own layers are compared with."""

    def __init__(self, source: RandomWeights) -> None:
        self.source = source

    def pop(self, name: str) -> Tensor:
        return self.source.pop(name).float()


def build(weights: RandomWeights, drafting: bool = False, product: type[Product] = Linear) -> Transformer:
    """The model on its device, with a draft adapter where it will draft, and its layers' products of that kind."""
    with torch.inference_mode():
        adapter = weights.adapter() if drafting else None
        return Transformer(weights.config, weights, adapter, product=product)
