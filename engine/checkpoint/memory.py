"""How much memory a model takes and how many tokens fit beside it, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.checkpoint.config import dtype_bytes
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from engine.checkpoint.config import ModelConfig
    from engine.config import Quantization

CARD_BYTES = {"80 GB": 80 * 10**9, "141 GB": 141 * 10**9}
USABLE = 0.9
"""Share of a card for weights and K/V; the rest is for activations, graphs, the driver, and the table of rotations: 512
bytes a position of the context, with heads of 128."""
TENSOR_PARALLEL = (1, 2, 4, 8)
FP8_BYTES, SCALE_BYTES = 1, 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One way to place a model: every rank has a card of its own.

    Attributes:
        weight_bytes, kv_bytes_per_token: per rank.
        tokens: K/V tokens of all sequences together that fit; 0 where the weights alone do not.
    """

    card: str
    card_bytes: int
    dtype: str
    tensor_parallel: int
    weight_bytes: int
    kv_bytes_per_token: int
    tokens: int


def adapter_parameters(config: ModelConfig, rank: int) -> int:
    """Weights of the draft adapter (contract 2.2): A `[rank, q_size]` and B `[hidden, rank]` per layer."""
    return config.num_layers * rank * (config.q_size + config.hidden_size)


def weight_bytes(
    config: ModelConfig,
    dtype: str,
    tensor_parallel: int = 1,
    adapter_rank: int | None = None,
    quantization: Quantization = "none",
) -> int:
    """Bytes of weights on one rank. Norms, and B of the draft adapter, are on every rank; the rest is cut in equal
    parts by rows or columns. In FP8 a layer's products have a byte per weight and a float32 scale per output."""
    shared = config.hidden_size * (2 * config.num_layers + 1)
    divided = config.parameter_count - shared
    if adapter_rank is not None:
        shared += config.num_layers * adapter_rank * config.hidden_size
        divided += config.num_layers * adapter_rank * config.q_size
    whole = (shared + divided // tensor_parallel) * dtype_bytes(dtype)
    if quantization == "none":
        return whole
    by_columns = config.q_size + 2 * config.kv_size + 2 * config.intermediate_size
    products = config.hidden_size * (by_columns + config.q_size + config.intermediate_size) // tensor_parallel
    scales = SCALE_BYTES * (by_columns // tensor_parallel + 2 * config.hidden_size)
    return whole + config.num_layers * (scales - products * (dtype_bytes(dtype) - FP8_BYTES))


def tensor_parallel_problem(config: ModelConfig, ranks: int) -> str | None:
    """Why the model cannot be cut for so many ranks, or None."""
    for name, value in (
        ("num_key_value_heads", config.num_kv_heads),
        ("num_attention_heads", config.num_heads),
        ("intermediate_size", config.intermediate_size),
        ("vocab_size", config.vocab_size),
    ):
        if value % ranks:
            return f"{ranks} ranks do not divide {name} ({value})"
    return None


def check_tensor_parallel(config: ModelConfig, ranks: int) -> None:
    """Raises CheckpointError where the model cannot be cut for `tp` = `ranks`, with what is allowed."""
    problem = tensor_parallel_problem(config, ranks)
    if problem is not None:
        allowed = [str(size) for size in TENSOR_PARALLEL if tensor_parallel_problem(config, size) is None]
        raise CheckpointError(f"tp is {ranks}, but {problem}; allowed for this checkpoint: {', '.join(allowed)}")


def tokens_that_fit(
    config: ModelConfig,
    card_bytes: int,
    dtype: str,
    tensor_parallel: int = 1,
    adapter_rank: int | None = None,
    usable: float = USABLE,
    quantization: Quantization = "none",
) -> int:
    """Tokens of K/V that fit beside the weights on cards of `card_bytes`, of which a share `usable` is used."""
    free = int(card_bytes * usable) - weight_bytes(config, dtype, tensor_parallel, adapter_rank, quantization)
    return max(0, free // (config.kv_bytes_per_token(dtype) // tensor_parallel))


def memory_plans(
    config: ModelConfig, dtype: str, adapter_rank: int | None = None, quantization: Quantization = "none"
) -> Iterator[MemoryPlan]:
    """A plan for every card and every number of ranks that divides the model."""
    for card, size in CARD_BYTES.items():
        for ranks in TENSOR_PARALLEL:
            if tensor_parallel_problem(config, ranks) is None:
                yield MemoryPlan(
                    card=card,
                    card_bytes=size,
                    dtype=dtype,
                    tensor_parallel=ranks,
                    weight_bytes=weight_bytes(config, dtype, ranks, adapter_rank, quantization),
                    kv_bytes_per_token=config.kv_bytes_per_token(dtype) // ranks,
                    tokens=tokens_that_fit(config, size, dtype, ranks, adapter_rank, quantization=quantization),
                )
