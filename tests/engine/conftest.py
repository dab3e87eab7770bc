"""One torch thread for every test of the engine, and a small random checkpoint with the real tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from tests.engine.serving import load
from tests.oracle.random_model import random_tensors, raw_config, save_checkpoint

TOKENIZER = Path(__file__).parents[2] / "engine" / "tiny" / "checkpoint"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of random weights whose vocabulary is the shipped byte-level tokenizer's."""
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    raw = raw_config(
        vocab_size=1 + max(vocabulary.values()),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_hidden_layers=1,
        max_position_embeddings=512,
    )
    path = save_checkpoint(tmp_path_factory.mktemp("text") / "checkpoint", raw, random_tensors(raw, seed=3))
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER / name, path / name)
    return path


@pytest.fixture(scope="session")
def text_engine(text_checkpoint: Path) -> Engine:
    """Random weights with a tokenizer; driven by `serving.answer`."""
    return load(text_checkpoint)


@pytest.fixture(scope="session")
def golden_engine() -> Engine:
    """The trained golden checkpoint (ids only); driven by `serving.answer`."""
    return load()
