"""Graphs of the forward: their buckets, and what an operator may ask for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.settings import AppArgs
from engine.config import EngineConfig
from engine.graphs import TOKENS, Bucket
from tests.kernels.isolated import interpreted


def test_forwards_in_graphs() -> None:
    interpreted(Path(__file__).parent / "interpreted_graphs.py", least=5)


def test_buckets_waste_at_most_half_of_themselves() -> None:
    assert list(TOKENS) == sorted(TOKENS)
    assert all(large <= 2 * small for small, large in pairwise(TOKENS))


@pytest.mark.parametrize("tokens", TOKENS)
def test_without_splits_there_is_room_for_a_row_each_and_nothing_to_merge(tokens: int) -> None:
    sizes = Bucket(tokens, False, False).sizes
    assert (sizes.items, sizes.merges, sizes.partial_rows) == (tokens, 0, 0)
    assert Bucket(tokens, True, True).sizes.has_room_for(sizes)
    assert not sizes.has_room_for(Bucket(tokens, True, True).sizes)


@pytest.mark.parametrize("fields", [{"device": "cpu"}, {"device": "cuda", "tp": 2}])
def test_graphs_need_one_gpu(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"cuda_graphs is true with .*; allowed: device 'cuda' and tp 1"):
        EngineConfig(cuda_graphs=True, **fields)
    assert EngineConfig(cuda_graphs=True, device="cuda").cuda_graphs


@pytest.mark.parametrize("fields", [{"replica_gpus": 0}, {"replica_gpus": 1, "tp": 2}])
def test_a_serve_config_says_so_in_its_own_words(fields: dict[str, object]) -> None:
    allowed = "allowed: replica_gpus 1 and tp 1"
    with pytest.raises(ValidationError, match=f"cuda_graphs is true with replica_gpus .*; {allowed}"):
        AppArgs.model_validate({"cuda_graphs": True, **fields})
    assert AppArgs.model_validate({"cuda_graphs": True, "replica_gpus": 1}).cuda_graphs
