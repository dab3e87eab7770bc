"""Configs against the published figures (contract 1.1 to 1.4), and every problem in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.config import ModelConfig
from engine.errors import CheckpointError
from tests.engine.checkpoint.golden import GOLDEN, PUBLISHED, golden_config


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "layers", "theta", "parameters", "kv_bytes"),
    [
        ("3b-instruct", 3072, 9216, 26, 1e6, 3_831_659_520, 106_496),
        ("8b-instruct", 4096, 14336, 34, 1e6, 8_489_553_920, 139_264),
        ("14b-instruct", 5120, 16384, 40, 1e9, 13_506_073_600, 163_840),
        ("3b-base", 3072, 9216, 26, 1e6, 3_831_659_520, 106_496),
    ],
)
def test_published_shapes(
    name: str, hidden: int, inner: int, layers: int, theta: float, parameters: int, kv_bytes: int
) -> None:
    config = ModelConfig.from_dir(PUBLISHED / name)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (hidden, inner, layers)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.q_size, config.kv_size) == (4096, 1024)
    assert config.parameter_count == parameters
    assert config.kv_bytes_per_token() == kv_bytes
    assert config.kv_bytes_per_token(torch.float32) == 2 * kv_bytes
    assert config.rope.theta == theta
    assert (config.rope.beta_fast, config.rope.beta_slow, config.rope.llama_4_scaling_beta) == (32.0, 1.0, 0.1)
    assert (config.rope.mscale, config.rope.mscale_all_dim) == (1.0, 1.0)
    assert config.rope.original_max_position_embeddings == 16384
    base = name.endswith("base")
    assert config.rope.factor == (0.25 if base else 16.0)
    assert config.max_position_embeddings == (4096 if base else 262144)
    assert config.eos_token_ids == ((2,) if base else (11,))
    assert (config.bos_token_id, config.mask_token_id, config.pad_token_id) == (1, 100, None)
    assert (config.block_size, config.vocab_size, config.dtype) == (32, 131072, "bfloat16")
    assert config.rms_norm_eps == 1e-5
    assert not config.tie_word_embeddings


def test_missing_keys_have_the_configuration_class_defaults() -> None:
    """Contract 1.4; its default mask id of -1 and its missing rope parameters cannot be served, so those are given."""
    rope = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1}
    config = ModelConfig.from_dict({"mask_token_id": 100, "rope_parameters": rope})
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (4096, 14336, 34)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (131072, 262144, 1e-5)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), None)
    assert (config.block_size, config.tie_word_embeddings, config.rope.theta) == (32, False, 1e6)


def test_rope_under_its_other_names() -> None:
    data = golden_config()
    rope = data.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    elsewhere = ModelConfig.from_dict({**data, "rope_scaling": rope, "rope_theta": theta})
    assert elsewhere.rope == ModelConfig.from_dict(golden_config()).rope


def test_several_eos_ids() -> None:
    config = ModelConfig.from_dict({**golden_config(), "eos_token_id": [11, 2, 11]})
    assert config.eos_token_ids == (11, 2)
    assert config.eos_token_id == 11


def test_megatron_bridge_block_size() -> None:
    assert ModelConfig.from_dict({**golden_config(), "block_size": 64}).block_size == 64


def test_newer_files_say_dtype() -> None:
    data = golden_config()
    del data["torch_dtype"]
    assert ModelConfig.from_dict({**data, "dtype": "bfloat16"}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "96"}, "hidden_size is '96'; allowed: an integer of at least 1"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, r"num_attention_heads is 4; allowed: a multiple of num_key_value_heads \(3\)"),
        ({"head_dim": 31}, "head_dim is 31; allowed: an even number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; allowed: a number above 0"),
        ({"mask_token_id": 160}, "mask_token_id is 160; allowed: a token id, 0 to 159"),
        ({"mask_token_id": -1}, "mask_token_id is -1"),
        ({"mask_token_id": 11}, "mask_token_id is 11; allowed: an id that is not an EOS id"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]"),
        ({"eos_token_id": [11, 4000]}, r"eos_token_id is \[11, 4000\]"),
        ({"bos_token_id": "1"}, "bos_token_id is '1'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; allowed: true or false"),
        ({"dlm_paradigm": "autoregressive"}, "dlm_paradigm is 'autoregressive'; allowed: \"bidirectional\""),
        ({"model_type": "nemotron_labs_diffusion_vlm"}, "models with a vision tower are not served"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'"),
        ({"torch_dtype": ["x"]}, "torch_dtype is"),
        ({"block_size": 0}, "block_size is 0"),
        ({"rope_parameters": None}, "rope_parameters is missing"),
        ({"rope_parameters": 7}, "rope_parameters is 7"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        ModelConfig.from_dict({**golden_config(), **change})
    assert "(1 problem)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_type": "linear"}, "rope_parameters.rope_type is 'linear'; allowed: \"yarn\""),
        ({"factor": None}, "rope_parameters.factor is missing"),
        ({"rope_theta": 1.0}, "rope_parameters.rope_theta is 1.0; allowed: a number above 1"),
        ({"original_max_position_embeddings": 2.5}, "rope_parameters.original_max_position_embeddings is 2.5"),
        (
            {"llama_4_scaling_beta": -0.1},
            "rope_parameters.llama_4_scaling_beta is -0.1; allowed: a number of at least 0",
        ),
        ({"attention_factor": 1.2}, "rope_parameters.attention_factor is 1.2"),
    ],
)
def test_a_wrong_rope_value_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    data = golden_config()
    data["rope_parameters"] |= change
    with pytest.raises(CheckpointError, match=words):
        ModelConfig.from_dict(data)


def test_all_problems_come_in_one_message() -> None:
    changes = {"hidden_size": "x", "mask_token_id": 4000, "dlm_paradigm": "autoregressive", "num_key_value_heads": 3}
    data = {**golden_config(), **changes}
    data["rope_parameters"] = {"rope_type": "default"}
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    message = str(caught.value)
    for name in ("hidden_size", "mask_token_id", "dlm_paradigm", "num_attention_heads", "rope_type", "factor"):
        assert name in message


def test_directories_without_a_readable_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, not list"):
        ModelConfig.from_dir(tmp_path)


def test_the_small_checkpoint() -> None:
    config = ModelConfig.from_dir(GOLDEN)
    assert config.parameter_count == 307_872
    assert config.dtype == "float32"
    assert config.rope.original_max_position_embeddings == 64
