"""The released loops (`benchmarks/reference_loops.py`) on the random weights of a measured model.

transformers' modules on the device, filled tensor by tensor with the same draws as the engine's model.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from transformers import Ministral3ForCausalLM

from benchmarks.gpu.shapes import STANDARD_DEVIATION, RandomWeights
from benchmarks.reference_loops import AdaptedLinear, ReferenceLoops, ministral3_config
from engine.checkpoint.config import ModelConfig


class RandomReference(ReferenceLoops):
    """The loops without a checkpoint directory."""

    def __init__(self, weights: RandomWeights) -> None:
        """Takes the weights that an engine's model was built from; draws all of them again, and the draft adapter."""
        config = weights.config
        self.mask_id = config.mask_token_id
        self.eos_id = config.eos_token_id
        self.block_size = config.block_size
        usual = torch.get_default_dtype()
        # Built in its own type: casting it afterwards would round the rotary frequencies too.
        torch.set_default_dtype(weights.dtype)
        try:
            with weights.device:
                self.model = Ministral3ForCausalLM(ministral3_config(config_json(config)))
        finally:
            torch.set_default_dtype(usual)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights.pop(_checkpoint_name(name)))
        adapter = weights.adapter()
        self.adapters = []
        for layer, (down, up) in zip(self.model.model.layers, adapter.layers, strict=True):
            layer.self_attn.o_proj = AdaptedLinear(layer.self_attn.o_proj, down, up, adapter.scale)
            self.adapters.append(layer.self_attn.o_proj)
        self.model.eval().requires_grad_(False)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """What a `config.json` with these shapes says, as far as transformers asks."""
    rope = asdict(config.rope)
    return {
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": STANDARD_DEVIATION,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": rope.pop("theta"), **rope},
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "vocab_size": config.vocab_size,
    }


def _checkpoint_name(name: str) -> str:
    return name.replace("lm_head.", "diffusion_head.").replace("model.", "encoder.")
