"""When streams move, how many, and that they come to rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.load import ReplicaLoad
from deployments.moving import LEAST_GAIN_S, move_of

STREAM_S = 3.0
counts = st.lists(st.integers(0, 60), min_size=2, max_size=5)


def load(name: str, streams: int, **others: float) -> ReplicaLoad:
    return ReplicaLoad(name, queue_s=STREAM_S * streams, sequences=streams, running=streams, **others)  # type: ignore[arg-type]


def test_a_new_replica_gets_half() -> None:
    move = move_of([load("old", 40), load("new", 0)])
    assert move is not None
    assert (move.source, move.target, move.share) == ("old", "new", 0.5)


@pytest.mark.parametrize(
    "loads",
    [
        [],
        [load("only", 40)],
        [load("a", 40), load("b", 21)],
        [replace(load("a", 4), queue_s=LEAST_GAIN_S * 0.9), load("b", 0)],
        # Work in it, but nothing could be taken in there.
        [load("a", 40), replace(load("b", 2), waiting=1)],
    ],
)
def test_what_is_level_enough_is_left_alone(loads: list[ReplicaLoad]) -> None:
    assert move_of(loads) is None


@given(counts)
def test_streams_come_to_rest_and_none_comes_back_in_a_round(streams: list[int]) -> None:
    met = {str(index): count for index, count in enumerate(streams)}
    for _ in range(40):
        move = move_of([load(name, count) for name, count in met.items()])
        if move is None:
            break
        count = int(met[move.source] * move.share)
        if not count:
            break
        before = met[move.source] - met[move.target]
        met[move.source] -= count
        met[move.target] += count
        assert 0 <= met[move.source] - met[move.target] < before
    else:
        pytest.fail("they never come to rest")
    assert sum(met.values()) == sum(streams)
    fullest, emptiest = max(met.values()), min(met.values())
    assert emptiest > fullest * 0.5 or (fullest - emptiest) * STREAM_S < LEAST_GAIN_S or fullest < 2
