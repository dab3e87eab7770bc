"""Graphs of the forward: their buckets, and what an operator may ask for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

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


GLOO = r"cuda_graphs is true with tp 2 and tp_backend 'gloo'; allowed: tp_backend 'nccl' or 'auto'"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": "cpu"}, "cuda_graphs is true with device 'cpu'; allowed: device 'cuda'"),
        ({"device": "cuda", "tp": 2, "tp_backend": "gloo"}, GLOO),
    ],
)
def test_graphs_need_gpus_and_no_host_between_them(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EngineConfig(cuda_graphs=True, **fields)
    for tp in (1, 2):
        assert EngineConfig(cuda_graphs=True, device="cuda", tp=tp).cuda_graphs


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"replica_gpus": 0}, "cuda_graphs is true with replica_gpus 0; allowed: replica_gpus 1"),
        ({"replica_gpus": 1, "tp": 2, "tp_backend": "gloo"}, GLOO),
    ],
)
def test_a_serve_config_says_so_in_its_own_words(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AppArgs.model_validate({"cuda_graphs": True, **fields})
    for tp in (1, 2):
        assert AppArgs.model_validate({"cuda_graphs": True, "replica_gpus": 1, "tp": tp}).cuda_graphs
