"""What a replica reserves for its ranks, in settings, in Serve's options and in the configs for 14B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import DeploymentSchema

from deployments.app import build
from deployments.ranks import placement
from deployments.settings import AppArgs
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import tokens_that_fit
from tests.engine.checkpoint.golden import PUBLISHED

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
BIG = PUBLISHED / "14b-instruct"


def args_of(name: str) -> AppArgs:
    [application] = yaml.safe_load((CONFIGS / name).read_text())["applications"]
    return AppArgs.model_validate({**application["args"], "model": str(BIG)})


def test_one_rank_is_one_actor() -> None:
    assert placement(AppArgs(replica_cpus=0.3)) == {"ray_actor_options": {"num_cpus": 0.3}}
    assert placement(args_of("14b_one_141gb.yaml")) == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 1}}


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_several_ranks_are_a_placement_group_on_one_node(tp: int) -> None:
    options = placement(AppArgs.model_validate({"model": str(BIG), "tp": str(tp), "replica_gpus": "1"}))
    assert options["placement_group_bundles"] == [{"CPU": 0.5, "GPU": 1}] * tp
    assert options["placement_group_strategy"] == "STRICT_PACK"
    # Rank 0 has to fit into the first bundle.
    assert options["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1}
    DeploymentSchema.model_validate({"name": "Replica", **options})


def test_a_rank_reserves_only_what_it_needs() -> None:
    options = placement(AppArgs(tp=2, replica_cpus=0.25))
    assert options["placement_group_bundles"] == [{"CPU": 0.25}] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tp": 3}, "tp"),
        ({"tp": "two"}, "tp"),
        ({"tp": 2, "replica_cpus": 0}, "replica_cpus and replica_gpus are 0; allowed with tp 2"),
        ({"tp": 4}, r"tp is 4, but 4 ranks do not divide num_key_value_heads \(2\); allowed for this checkpoint: 1, 2"),
        ({"replica_gpus": 2}, "replica_gpus"),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_anything_starts(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppArgs.model_validate(wrong)


@pytest.mark.parametrize(
    ("name", "tp", "card_bytes"),
    [("14b_one_141gb.yaml", 1, 141e9), ("14b_two_80gb.yaml", 2, 80e9), ("14b_many_nodes.yaml", 2, 80e9)],
)
def test_configs_for_14b_fit_their_cards_and_use_them(name: str, tp: int, card_bytes: float) -> None:
    args = args_of(name)
    assert (args.tp, args.replica_gpus, args.dtype) == (tp, 1, "bfloat16")
    fits = tokens_that_fit(ModelConfig.from_dir(BIG), int(card_bytes), "bfloat16", tp, adapter_rank=128)
    assert args.kv_tokens is not None
    assert 0.8 * fits < args.kv_tokens <= fits
    build(args)


def test_the_config_for_many_nodes_has_several_replicas_and_a_proxy_on_each() -> None:
    args = args_of("14b_many_nodes.yaml")
    assert 2 <= args.min_replicas < args.max_replicas
    assert yaml.safe_load((CONFIGS / "14b_many_nodes.yaml").read_text())["proxy_location"] == "EveryNode"
