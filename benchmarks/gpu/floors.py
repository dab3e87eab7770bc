"""The shortest time that a forward can take on a machine: `performance.md` 1.2, from shapes alone.

    t_mem  = (W + B (L + n) kv) / bandwidth
    t_comp = B n (F + a (L + n)) / rate
    floor  = max(t_mem, t_comp)

Activations are left out of t_mem: under 1% where stages are fused, and leaving them out makes the floor the stricter.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint.config import ModelConfig

BYTES = 2
"""Of a weight and of an element of K/V in bf16."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine was measured to do: `bandwidth` in bytes/s (read and written), `rate` in FLOP/s in bf16."""

    bandwidth: float
    rate: float


@dataclass(frozen=True, slots=True)
class Floor:
    """Of one forward: `bytes` read, `flops` done, and what bounds it on some ceilings."""

    bytes: float
    flops: float

    def memory_s(self, ceilings: Ceilings) -> float:
        return self.bytes / ceilings.bandwidth

    def compute_s(self, ceilings: Ceilings) -> float:
        return self.flops / ceilings.rate

    def seconds(self, ceilings: Ceilings) -> float:
        return max(self.memory_s(ceilings), self.compute_s(ceilings))


def matrix_parameters(config: ModelConfig) -> int:
    """Weights of the linear layers and the head: what a row is multiplied with. The embedding is only gathered."""
    attention = 2 * config.hidden_size * (config.q_size + config.kv_size)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def weight_bytes(config: ModelConfig, fp8: bool = False) -> int:
    """W: bytes of weights that a forward reads, in bf16; with `fp8` the layers' in FP8, the head's still in bf16."""
    head = config.vocab_size * config.hidden_size
    return BYTES * head + (1 if fp8 else BYTES) * (matrix_parameters(config) - head)


def row_flops(config: ModelConfig) -> int:
    """F: FLOP of a row in linear layers and head."""
    return 2 * matrix_parameters(config)


def attention_flops(config: ModelConfig) -> int:
    """a: FLOP of a row per token of context, scores and values over all query heads."""
    return 4 * config.num_layers * config.q_size


def forward_floor(config: ModelConfig, canvases: int, context: int, rows: int, fp8: bool = False) -> Floor:
    """Of `canvases` canvases of `rows` rows, each after `context` tokens, all rows through the head.

    The FLOP of FP8 products count like those of bf16: the machine's rate is measured in bf16.
    """
    keys = context + rows
    return Floor(
        bytes=weight_bytes(config, fp8) + canvases * keys * config.kv_bytes_per_token("bfloat16"),
        flops=canvases * rows * (row_flops(config) + attention_flops(config) * keys),
    )
