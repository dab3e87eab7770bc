"""Memory plans against the published figures, and checks without loading."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor

import engine.tiny
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.inspect import describe, render
from engine.checkpoint.memory import adapter_parameters, tensor_parallel_problem, tokens_that_fit, weight_bytes
from tests.engine.checkpoint.golden import GOLDEN, PUBLISHED, write_copy

DOWN = "encoder.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor_bytes", "lora", "kv_bytes", "tokens_on_h200"),
    [
        ("3b-instruct", 7_663_319_040, 23_855_104, 106_496, 1.19e6),
        ("8b-instruct", 16_979_107_840, 35_651_584, 139_264, 0.84e6),
        ("14b-instruct", 27_012_147_200, 47_185_920, 163_840, 0.65e6),
    ],
)
def test_published_sizes(name: str, tensor_bytes: int, lora: int, kv_bytes: int, tokens_on_h200: float) -> None:
    """Contract 1.2; the capacity of an H200 at 90 % of its 149 GB is that of the performance notes, section 1.1."""
    config = ModelConfig.from_dir(PUBLISHED / name)
    assert weight_bytes(config, "bfloat16") == tensor_bytes
    assert adapter_parameters(config, 128) == lora
    assert tokens_that_fit(config, 149 * 10**9, "bfloat16") == pytest.approx(tokens_on_h200, rel=0.01)
    described = describe(PUBLISHED / name)
    assert described["weights"] == "absent"
    assert described["problems"] == []
    assert described["kv_bytes_per_token"] == kv_bytes
    assert described["draft_adapter"] == {"rank": 128, "scale": 4.0, "parameters": lora, "has_file": False}


def test_14b_on_the_two_cards() -> None:
    plans = {(plan["card"], plan["tensor_parallel"]): plan for plan in describe(PUBLISHED / "14b-instruct")["memory"]}
    assert plans.keys() == {(card, ranks) for card in ("80 GB", "141 GB") for ranks in (1, 2, 4, 8)}
    one = plans["80 GB", 1]
    # 72 GB are usable; weights and adapter take 27.1 GB of them.
    assert one["weight_bytes"] == 27_012_147_200 + 2 * 47_185_920
    assert one["tokens"] == (72 * 10**9 - one["weight_bytes"]) // 163_840
    two = plans["141 GB", 2]
    assert two["kv_bytes_per_token"] == 81_920
    assert one["weight_bytes"] / 2 < two["weight_bytes"] < one["weight_bytes"] / 2 * 1.01
    assert two["tokens"] == (1269 * 10**8 - two["weight_bytes"]) // 81_920


def test_float32_14b_does_not_leave_much_of_80_gb() -> None:
    described = describe(PUBLISHED / "14b-instruct", dtype="float32")
    assert described["weight_bytes"] == 2 * 27_012_147_200
    assert described["kv_bytes_per_token"] == 2 * 163_840
    first = described["memory"][0]
    assert (first["card"], first["tensor_parallel"]) == ("80 GB", 1)
    assert first["tokens"] == (72 * 10**9 - 54_024_294_400 - 4 * 47_185_920) // 327_680
    config = ModelConfig.from_dir(PUBLISHED / "14b-instruct")
    assert tokens_that_fit(config, 48 * 10**9, "float32") == 0


def test_ranks_must_divide_the_heads() -> None:
    config = ModelConfig.from_dir(GOLDEN)
    assert tensor_parallel_problem(config, 2) is None
    assert tensor_parallel_problem(config, 4) == "4 ranks do not divide num_key_value_heads (2)"


def test_a_complete_checkpoint() -> None:
    described = describe(GOLDEN)
    assert described["weights"] == "complete"
    assert described["problems"] == []
    assert described["parameters"] == 307_872
    assert described["tensors"] == 30
    assert described["tokenizer"] is False
    assert json.loads(json.dumps(described)) == described


def test_problems_of_weights_adapter_and_tokenizer_are_found_together(tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN][:, :-1].contiguous()

    path = write_copy(tmp_path / "a", change=narrow)
    (path / "linear_spec_lora" / "adapter_model.safetensors").unlink()
    shutil.copy(Path(engine.tiny.__file__).parent / "checkpoint" / "tokenizer.json", path / "tokenizer.json")
    described = describe(path)
    assert described["weights"] == "wrong"
    problems = described["problems"]
    assert len(problems) == 3
    assert f"{DOWN} has shape [96, 191]; expected [96, 192]" in problems
    assert "linear_spec_lora: adapter_model.safetensors is missing" in problems
    assert any("tokenizer.json has ids up to" in problem and "vocab_size is 160" in problem for problem in problems)
    assert "has shape [96, 191]" in rendered(described)


def rendered(described: dict[str, Any]) -> str:
    output = io.StringIO()
    render(described, Console(file=output, width=200))
    return output.getvalue()


def test_rendered_for_a_person() -> None:
    text = rendered(describe(PUBLISHED / "14b-instruct"))
    for words in (
        "13,506,073,600 in 363 tensors",
        "27.01 GB in bfloat16",
        "163,840 bytes per token",
        "141 GB",
        "rank 128",
    ):
        assert words in text
    assert "no model file here" in text


@pytest.mark.parametrize(
    ("card", "ranks", "weights_gb", "kv_bytes", "tokens"),
    [
        ("80 GB", 1, 27.11, 163_840, 274_000),
        ("80 GB", 2, 13.58, 81_920, 713_000),
        ("141 GB", 1, 27.11, 163_840, 609_000),
    ],
)
def test_14b_per_rank_on_one_80_gb_card_on_two_and_on_one_141_gb_card(
    card: str, ranks: int, weights_gb: float, kv_bytes: int, tokens: int
) -> None:
    """From contract 1.2: 27,012,147,200 bytes, of which 81 norms of 10,240 are on every rank; 47,185,920 weights of the
    adapter, of which B (40 x 128 x 5,120) is on every rank; 163,840 bytes of K/V per token. 90 % of a card."""
    plans = {(plan["card"], plan["tensor_parallel"]): plan for plan in describe(PUBLISHED / "14b-instruct")["memory"]}
    plan = plans[card, ranks]
    norms, b = 81 * 10_240, 2 * 40 * 128 * 5_120
    cut = 27_012_147_200 - norms + 2 * 47_185_920 - b
    assert plan["weight_bytes"] == norms + b + cut // ranks
    assert plan["weight_bytes"] / 1e9 == pytest.approx(weights_gb, abs=0.01)
    assert plan["kv_bytes_per_token"] == kv_bytes
    assert plan["tokens"] == pytest.approx(tokens, rel=0.002)
    assert f"{plan['tokens']:,}" in rendered(describe(PUBLISHED / "14b-instruct"))
