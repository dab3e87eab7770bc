"""When streams move, how many, and that they come to rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.moving import LEAST_GAIN_S, MOST_AT_ONCE, Mover, move_of

STREAM_S = 3.0
counts = st.lists(st.integers(0, 60), min_size=2, max_size=5)


def load(name: str, streams: int) -> ReplicaLoad:
    return ReplicaLoad(name, queue_s=STREAM_S * streams, sequences=streams, running=streams)


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
        [replace(load("a", 4), queue_s=LEAST_GAIN_S * 0.9), replace(load("b", 2), queue_s=LEAST_GAIN_S * 0.4)],
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
    assert emptiest > fullest * 0.5 or (fullest - emptiest) * STREAM_S < LEAST_GAIN_S or fullest - emptiest < 2


@dataclass
class Waiting:
    """A stream that notes whether it was told to move."""

    key: str
    tokens: int = 0
    arrived_s: float = 0.0
    movable: bool = True
    moved: bool = False

    def move(self) -> bool:
        self.moved = self.movable
        return self.moved


async def test_the_last_in_line_move_first_and_never_on_a_load_that_knows_nothing_of_it() -> None:
    mover = Mover()
    streams = [Waiting(f"far-{place}", tokens=50 + place) for place in range(3)]
    streams += [Waiting(f"line-{place}", arrived_s=float(place)) for place in range(5)]
    elsewhere = Waiting("elsewhere")
    for stream in streams:
        BOARD.sent("full", stream.key, 1.0, 1)
        mover.watch(stream)
    BOARD.sent("other", elsewhere.key, 1.0, 1)
    mover.watch(elsewhere)
    streams[-1].movable = False
    loads = [replace(load("full", 8), at_s=5.0), load("new", 0), load("other", 7)]
    assert mover.level(loads) == 3, "half of eight, of which one cannot move now"
    assert [stream.key for stream in streams if stream.moved] == ["line-1", "line-2", "line-3"]
    assert mover.level(loads) == 0, "the same picture again"
    assert mover.level([replace(loads[0], at_s=6.0), *loads[1:]]) == 0, "the target has not reported since"
    assert mover.level([replace(one, at_s=6.0) for one in loads]) == 3
    assert not elsewhere.moved
    for stream in [*streams, elsewhere]:
        mover.forget(stream)
        BOARD.done(stream.key)


async def test_a_crowd_moves_in_parts() -> None:
    mover = Mover()
    streams = [Waiting(f"crowd-{place}") for place in range(4 * MOST_AT_ONCE)]
    for stream in streams:
        BOARD.sent("crowded", stream.key, 1.0, 1)
        mover.watch(stream)
    assert mover.level([load("crowded", len(streams)), load("new", 0)]) == MOST_AT_ONCE
    for stream in streams:
        mover.forget(stream)
        BOARD.done(stream.key)
