"""Loading: every tensor as it is in the file, and every problem in one message before any tensor is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.checkpoint.config import ModelConfig
from engine.checkpoint.weights import HEAD, expected_tensors, load_draft_adapter, load_weights
from engine.errors import CheckpointError
from tests.engine.checkpoint.golden import GOLDEN, PUBLISHED, write_copy

CONFIG = ModelConfig.from_dir(GOLDEN)
DOWN = "encoder.layers.1.mlp.down_proj.weight"
Q = "encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(("name", "count"), [("3b-instruct", 237), ("8b-instruct", 309), ("14b-instruct", 363)])
def test_expected_tensors_are_the_published_ones(name: str, count: int) -> None:
    """Contract 1.2 and 2.1."""
    config = ModelConfig.from_dir(PUBLISHED / name)
    tensors = expected_tensors(config)
    assert len(tensors) == count
    assert sum(math.prod(shape) for shape in tensors.values()) == config.parameter_count
    hidden, inner = config.hidden_size, config.intermediate_size
    assert tensors["encoder.embed_tokens.weight"] == tensors["diffusion_head.weight"] == (131072, hidden)
    last = f"encoder.layers.{config.num_layers - 1}"
    assert tensors[f"{last}.self_attn.q_proj.weight"] == (4096, hidden)
    assert tensors[f"{last}.self_attn.k_proj.weight"] == (1024, hidden)
    assert tensors[f"{last}.self_attn.v_proj.weight"] == (1024, hidden)
    assert tensors[f"{last}.self_attn.o_proj.weight"] == (hidden, 4096)
    assert tensors[f"{last}.mlp.gate_proj.weight"] == tensors[f"{last}.mlp.up_proj.weight"] == (inner, hidden)
    assert tensors[f"{last}.mlp.down_proj.weight"] == (hidden, inner)
    assert tensors[f"{last}.input_layernorm.weight"] == tensors["encoder.norm.weight"] == (hidden,)
    assert tensors[f"{last}.post_attention_layernorm.weight"] == (hidden,)


def test_loads_every_tensor_of_one_file() -> None:
    loaded = load_weights(GOLDEN, CONFIG)
    stored = load_file(GOLDEN / "model.safetensors")
    assert loaded.keys() == stored.keys() == expected_tensors(CONFIG).keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, stored[name])
        assert tensor.data_ptr() % 64 == 0
    narrow = load_weights(GOLDEN, CONFIG, torch.bfloat16)
    assert torch.equal(narrow[Q], stored[Q].to(torch.bfloat16))


def write_shards(target: Path, drop: str | None = None) -> dict[str, str]:
    """The small checkpoint in two files with an index."""
    target.mkdir()
    (target / "config.json").write_text((GOLDEN / "config.json").read_text())
    stored = load_file(GOLDEN / "model.safetensors")
    names = sorted(stored)
    files = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: stored[name] for name in names if files[name] == file and name != drop}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def test_loads_shards_by_their_index_and_nothing_else(tmp_path: Path) -> None:
    write_shards(tmp_path / "a")
    save_file({"stray": torch.zeros(1)}, tmp_path / "a" / "other.safetensors")
    loaded, stored = load_weights(tmp_path / "a", CONFIG), load_file(GOLDEN / "model.safetensors")
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_problems_of_shards(tmp_path: Path) -> None:
    files = write_shards(tmp_path / "a", drop=Q)
    with pytest.raises(CheckpointError, match=f"{Q} is not in {files[Q]}") as caught:
        load_weights(tmp_path / "a", CONFIG)
    assert "(1 problem)" in str(caught.value)

    files = write_shards(tmp_path / "b")
    (tmp_path / "b" / files[Q]).write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=f"{files[Q]} cannot be read") as caught:
        load_weights(tmp_path / "b", CONFIG)
    assert "(1 problem)" in str(caught.value)

    files = write_shards(tmp_path / "c")
    (tmp_path / "c" / files[Q]).unlink()
    with pytest.raises(CheckpointError, match=f"{files[Q]} is missing"):
        load_weights(tmp_path / "c", CONFIG)

    index = {"weight_map": {**files, Q: "../b/model.safetensors"}}
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="allowed: a file in the same directory"):
        load_weights(tmp_path / "c", CONFIG)

    (tmp_path / "c" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_weights(tmp_path / "c", CONFIG)


def test_one_wrong_shape_is_refused_by_its_name(tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN][:, :-1].contiguous()

    path = write_copy(tmp_path / "a", change=narrow)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, CONFIG)
    assert f"{DOWN} has shape [96, 191]; expected [96, 192]" in str(caught.value)
    assert "(1 problem)" in str(caught.value)


def test_all_problems_come_in_one_message_before_any_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors[DOWN]
        tensors[Q] = tensors[Q].T.contiguous()
        tensors["encoder.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
        tensors["encoder.norm.weight"] = tensors["encoder.norm.weight"].to(torch.int32)

    def read(*_: Any) -> None:
        raise AssertionError("a tensor was read")

    path = write_copy(tmp_path / "a", change=spoil)
    monkeypatch.setattr("engine.checkpoint.weights.TensorReader.pop", read)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, CONFIG)
    message = str(caught.value)
    assert "(4 problems)" in message
    assert f"{DOWN} is missing; expected [96, 192]" in message
    assert f"{Q} has shape [96, 128]; expected [128, 96]" in message
    assert "encoder.layers.7.mlp.up_proj.weight [2, 2] is unexpected" in message
    assert "encoder.norm.weight has type I32; allowed: F64, F32, F16, BF16" in message


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_weights(tmp_path, CONFIG)


def test_tied_and_untied_heads(tmp_path: Path) -> None:
    """A tied head may be absent; one that is there is used (exports of Megatron-Bridge hold an untied copy)."""

    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[HEAD]

    tied = write_copy(tmp_path / "tied", {"tie_word_embeddings": True}, drop, adapter=False)
    config = ModelConfig.from_dir(tied)
    loaded = load_weights(tied, config)
    assert loaded[HEAD] is loaded["encoder.embed_tokens.weight"]
    assert config.parameter_count == CONFIG.parameter_count - 160 * 96

    both = write_copy(tmp_path / "both", {"tie_word_embeddings": True, "block_size": 64}, adapter=False)
    loaded = load_weights(both, ModelConfig.from_dir(both))
    assert torch.equal(loaded[HEAD], load_file(GOLDEN / "model.safetensors")[HEAD])
    assert load_draft_adapter(both, config) is None

    untied = write_copy(tmp_path / "untied", None, drop)
    with pytest.raises(CheckpointError, match=f"{HEAD} is missing; expected \\[160, 96\\]"):
        load_weights(untied, CONFIG)


def test_the_draft_adapter() -> None:
    adapter = load_draft_adapter(GOLDEN, CONFIG)
    assert adapter is not None
    stored = load_file(GOLDEN / "linear_spec_lora" / "adapter_model.safetensors")
    assert (adapter.rank, adapter.scale, len(adapter.layers)) == (8, 4.0, 3)
    for index, (down, up) in enumerate(adapter.layers):
        prefix = f"base_model.model.encoder.layers.{index}.self_attn.o_proj"
        assert torch.equal(down, stored[f"{prefix}.lora_A.weight"])
        assert torch.equal(up, stored[f"{prefix}.lora_B.weight"])
        assert (down.shape, up.shape) == ((8, 128), (96, 8))


def change_adapter_config(path: Path, **changes: Any) -> None:
    file = path / "linear_spec_lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_rank_stabilised_adapter_scales_by_the_root(tmp_path: Path) -> None:
    path = write_copy(tmp_path / "a")
    change_adapter_config(path, use_rslora=True)
    adapter = load_draft_adapter(path, CONFIG)
    assert adapter is not None
    assert adapter.scale == pytest.approx(32 / math.sqrt(8))


def test_problems_of_the_adapter_come_in_one_message(tmp_path: Path) -> None:
    path = write_copy(tmp_path / "a")
    change_adapter_config(path, r=4, use_dora=True, bias="all", target_modules=["o_proj", "q_proj"], peft_type="IA3")
    with pytest.raises(CheckpointError) as caught:
        load_draft_adapter(path, CONFIG)
    message = str(caught.value)
    for words in (
        "use_dora is True",
        "bias is 'all'",
        "target_modules is ['o_proj', 'q_proj']",
        "peft_type is 'IA3'",
        "layers.2.self_attn.o_proj.lora_A.weight has shape [8, 128]; expected [4, 128]",
        "layers.0.self_attn.o_proj.lora_B.weight has shape [96, 8]; expected [96, 4]",
    ):
        assert words in message


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_file_missing(tmp_path: Path, missing: str) -> None:
    path = write_copy(tmp_path / "a")
    (path / "linear_spec_lora" / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing} is missing"):
        load_draft_adapter(path, CONFIG)
