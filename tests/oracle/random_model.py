"""Random checkpoints of the family with the real rope parameters, for transformers' classes and for the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from engine.executor import Executor
from engine.model.transformer import Transformer

PAGE = 32


def raw_config(theta: float = 1e6, original_max: int = 16384, **changes: Any) -> dict[str, Any]:
    """A `config.json` with the released rope parameters; like 14B, hidden differs from heads x head_dim."""
    return {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "block_size": 32,
        "bos_token_id": 1,
        "eos_token_id": 11,
        "mask_token_id": 100,
        "head_dim": 32,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 160,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": 16.0,
            "original_max_position_embeddings": original_max,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        **changes,
    }


def random_tensors(raw: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """The 9 * layers + 3 tensors of contract 2.1, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = raw["hidden_size"], raw["intermediate_size"]
    q_size = raw["num_attention_heads"] * raw["head_dim"]
    kv_size = raw["num_key_value_heads"] * raw["head_dim"]

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns).uniform_(-1, 1, generator=generator).mul_((6 / columns) ** 0.5)

    def norm() -> Tensor:
        return torch.empty(hidden).uniform_(0.5, 1.5, generator=generator)

    tensors = {
        "encoder.embed_tokens.weight": matrix(raw["vocab_size"], hidden),
        "encoder.norm.weight": norm(),
        "diffusion_head.weight": matrix(raw["vocab_size"], hidden),
    }
    for layer in range(raw["num_hidden_layers"]):
        prefix = f"encoder.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        tensors[prefix + "self_attn.q_proj.weight"] = matrix(q_size, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = matrix(kv_size, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = matrix(kv_size, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = matrix(hidden, q_size)
        tensors[prefix + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = matrix(hidden, inner)
    return tensors


def save_checkpoint(directory: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Writes a checkpoint directory as the released ones are laid out (no tokenizer)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(tensors, directory / "model.safetensors")
    return directory


def executor(raw: dict[str, Any], tensors: dict[str, Tensor], pages: int = 64) -> Executor:
    """The engine's model with its K/V memory, without the engine around it."""
    return Executor(Transformer(ModelConfig.from_dict(raw), dict(tensors)), pages + 1, PAGE)


def segment(tokens: list[int], start: int, causal: bool, wanted: list[int] | None = None) -> Segment:
    """A segment of the only sequence, whose pages are 1, 2, 3, ...; by default all logits are wanted."""
    return Segment(
        tokens=tokens,
        start=start,
        causal=causal,
        drafted=False,
        wanted=list(range(len(tokens))) if wanted is None else wanted,
        pages=list(range(1, -(-(start + len(tokens)) // PAGE) + 1)),
    )
