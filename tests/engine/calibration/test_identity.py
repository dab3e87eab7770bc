"""A measurement belongs to one checkpoint, and is refused beside any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import identity as identity_module
from engine.checkpoint.identity import check_identity, checkpoint_identity
from engine.errors import CheckpointError


@pytest.fixture
def copy(text_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_checkpoint, tmp_path / "copy"))


def change_weight(directory: Path, name: str, place: int) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors[name].view(-1)[place] += 1.0
    save_file(tensors, directory / "model.safetensors")


def test_a_copy_is_the_same_checkpoint_whatever_its_json_looks_like(text_checkpoint: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    (copy / "ladder.json").write_text("{}")
    assert checkpoint_identity(copy) == checkpoint_identity(text_checkpoint)


def test_the_same_shapes_with_other_numbers_are_another_checkpoint(text_checkpoint: Path, copy: Path) -> None:
    change_weight(copy, "encoder.norm.weight", 3)
    assert checkpoint_identity(copy) != checkpoint_identity(text_checkpoint)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_config_and_tokenizer_count(text_checkpoint: Path, copy: Path, file: str) -> None:
    data = json.loads((copy / file).read_text())
    data["changed"] = True
    (copy / file).write_text(json.dumps(data))
    assert checkpoint_identity(copy) != checkpoint_identity(text_checkpoint)


@pytest.mark.parametrize("part", ["begin", "middle", "end", "shape"])
def test_large_files_are_sampled_in_every_tensor(copy: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(identity_module, "WHOLE_BELOW_BYTES", 0)
    monkeypatch.setattr(identity_module, "PIECE_BYTES", 64)
    name = "encoder.embed_tokens.weight"
    before = checkpoint_identity(copy)
    tensors = load_file(copy / "model.safetensors")
    count = tensors[name].numel()
    if part == "shape":
        tensors[name] = tensors[name].reshape(1, -1)
        save_file(tensors, copy / "model.safetensors")
    else:
        change_weight(copy, name, {"begin": 0, "middle": (count - 16) // 2 + 4, "end": count - 1}[part])
    assert checkpoint_identity(copy) != before


def test_shards_and_the_draft_adapter_count(text_checkpoint: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, copy / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = checkpoint_identity(copy)
    assert sharded != checkpoint_identity(text_checkpoint)
    (copy / "linear_spec_lora").mkdir()
    (copy / "linear_spec_lora" / "adapter_config.json").write_text('{"r": 2}')
    save_file({"a": torch.zeros(2)}, copy / "linear_spec_lora" / "adapter_model.safetensors")
    adapted = checkpoint_identity(copy)
    save_file({"a": torch.ones(2)}, copy / "linear_spec_lora" / "adapter_model.safetensors")
    assert len({sharded, adapted, checkpoint_identity(copy)}) == 3


def test_a_curve_of_another_checkpoint_is_refused(text_checkpoint: Path, copy: Path) -> None:
    own = {"identity": checkpoint_identity(text_checkpoint)}
    check_identity(text_checkpoint, own, "ladder.json")
    change_weight(copy, "encoder.norm.weight", 0)
    with pytest.raises(CheckpointError, match=r"ladder\.json was measured on another checkpoint .*stepdial calibrate"):
        check_identity(copy, own, "ladder.json")


def test_a_curve_without_an_identity_is_refused(text_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"quality\.json does not say .* run `stepdial calibrate --model"):
        check_identity(text_checkpoint, {"cells": []}, "quality.json")


def test_what_is_no_checkpoint_has_no_identity(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        checkpoint_identity(tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        checkpoint_identity(copy)
