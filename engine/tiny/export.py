"""Writes a run's weights as a checkpoint of the family: `python -m engine.tiny.export RUN/state.pt DIR`.

bfloat16 `model.safetensors` with the family's tensor names (contract 2.1), config.json and generation_config.json. The
tokenizer files are written by `engine.tiny.tokenizer`, before the training.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine.tiny.network import Network, Shape
from engine.tiny.tokenizer import BOS_ID, EOS_ID, MASK_ID


def config(shape: Shape) -> dict[str, Any]:
    """config.json with every key that the family's instruct checkpoints share (contract 1.1)."""
    module, model = "nemotron_labs_diffusion", "NemotronLabsDiffusion"
    return {
        "architectures": [f"{model}Model"],
        "ar_loss_weight": 1.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_implementation": "sdpa",
        "auto_map": {
            "AutoConfig": f"configuration_{module}.{model}Config",
            "AutoModel": f"modeling_{module}.{model}Model",
        },
        "block_size": shape.block_size,
        "bos_token_id": BOS_ID,
        "dlm_loss_weight": None,
        "dlm_paradigm": "bidirectional",
        "dp_varying_mask_ratio": False,
        "eos_token_id": EOS_ID,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "mask_token_id": MASK_ID,
        "max_position_embeddings": shape.max_position_embeddings,
        "mlp_bias": False,
        "model_type": module,
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_type": "yarn", **shape.rope},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "5.0.0",
        "use_cache": False,
        "vocab_size": shape.vocab_size,
    }


def export(weights: dict[str, torch.Tensor], shape: Shape, directory: Path) -> None:
    """Writes weights and configuration files into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "_from_model_config": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "transformers_version": "5.0.0",
        "use_cache": False,
    }
    (directory / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load(directory: Path) -> Network:
    """The training network with an exported checkpoint's weights, in float32."""
    network = Network(Shape())
    tensors = load_file(directory / "model.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval()


if __name__ == "__main__":
    export(torch.load(sys.argv[1], weights_only=False)["network"], Shape(), Path(sys.argv[2]))
