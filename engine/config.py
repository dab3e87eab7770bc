"""What an operator may set about one engine."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantization = Literal["none", "fp8"]


class EngineConfig(BaseModel):
    """Settings of one engine; every bound is checked at start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where every rank computes; cuda: each on a GPU of its own."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic type of weights and K/V; auto = float32 on a CPU, bfloat16 on a GPU."
    )
    quantization: Quantization = Field(
        "none", description="fp8: weights of the layers in FP8, by output channel, made when they are loaded."
    )
    batch_invariant: bool = Field(
        False,
        description="On a GPU: products and attention in fixed tiles, so that a pinned answer has the same bits alone "
        "and in any batch, as in float32 on a CPU it always has. Slower; not with fp8 or several ranks.",
    )
    cuda_graphs: bool = Field(
        False,
        description="On a GPU: forwards of up to 512 tokens are recorded at start and replayed by one launch each. "
        "Several ranks need NCCL between them.",
    )
    narrow_products: bool = Field(
        False,
        description="On a GPU: the layers' products of up to 64 rows by a kernel of their own instead of the library, "
        "SwiGLU in it. For cuda_graphs: launched one by one it takes the host longer. Not with fp8 or batch_invariant.",
    )
    threads: int | None = Field(None, ge=1, description="Torch threads of the forward; null = torch's own choice.")
    tp: Literal[1, 2, 4, 8] = Field(
        1, description="Tensor parallelism: processes that share the model, each with a device of its own."
    )
    tp_backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="How the ranks exchange tensors; auto = nccl between GPUs, gloo between CPU processes."
    )
    max_sequences: int = Field(256, ge=1, le=4096, description="Sequences that may hold K/V at the same time.")
    max_waiting: int = Field(4096, ge=1, description="Requests that may wait; one more is refused.")
    max_forward_tokens: int = Field(2048, ge=16, description="Slots of one forward: query tokens over all sequences.")
    prefill_chunk: int = Field(256, ge=1, description="Most prompt tokens of one sequence in one forward.")
    kv_tokens: int | None = Field(
        None, ge=64, description="K/V capacity in tokens; null = what `kv_memory_fraction` of the free memory holds."
    )
    kv_memory_fraction: float = Field(0.3, gt=0, le=0.95, description="Share of free memory for K/V.")
    max_kv_tokens: int = Field(262_144, ge=64, description="Upper bound of the capacity that is measured.")
    prefix_reuse: bool = Field(True, description="Share K/V pages of equal prefixes between requests.")
    flush_tokens: int = Field(16, ge=1, description="AR and self-speculation send at this many tokens,")
    flush_ms: float = Field(50.0, ge=0, description="or after this many milliseconds, or at the end.")
    cost_model: str | None = Field(None, description="File of a saved cost model to start from and to save to.")
    calibration: str | None = Field(
        None, description="Folder with the ladder.json that was measured on this checkpoint; null = beside it."
    )

    @model_validator(mode="after")
    def _products_are_possible(self) -> EngineConfig:
        check_products(self.quantization, self.batch_invariant, self.narrow_products, self.tp)
        return self

    @model_validator(mode="after")
    def _graphs_are_possible(self) -> EngineConfig:
        if self.cuda_graphs and self.device != "cuda":
            raise ValueError(f"cuda_graphs is true with device {self.device!r}; allowed: device 'cuda'")
        check_graphs(self.cuda_graphs, self.tp, self.tp_backend)
        return self


def check_graphs(cuda_graphs: bool, tp: int, tp_backend: str) -> None:
    """Raises ValueError where the ranks' exchange waits for the host."""
    if cuda_graphs and tp > 1 and tp_backend == "gloo":
        raise ValueError(
            f"cuda_graphs is true with tp {tp} and tp_backend 'gloo'; allowed: tp_backend 'nccl' or 'auto' (a graph "
            "cannot wait for the host)"
        )


def check_products(quantization: Quantization, batch_invariant: bool, narrow_products: bool, tp: int) -> None:
    """Raises ValueError where rows would depend on their batch all the same, or products are wanted in two forms."""
    if batch_invariant and (quantization != "none" or tp > 1):
        raise ValueError(
            f"batch_invariant is true with quantization {quantization!r} and tp {tp}; allowed: quantization 'none' and "
            "tp 1 (their sums follow the size of the batch)"
        )
    if narrow_products and (quantization != "none" or batch_invariant):
        raise ValueError(
            f"narrow_products is true with quantization {quantization!r} and batch_invariant {batch_invariant}; "
            "allowed: quantization 'none' and batch_invariant false (they have products of their own)"
        )
