"""When tokens go out."""

from __future__ import annotations

import pytest

from engine.events import Spent
from engine.output import Output

SPENT = Spent(0, 0, 0, 0.0, 0.0, 0)


def test_the_first_token_goes_out_at_once_then_by_count_or_age() -> None:
    out = Output(None, [], flush_tokens=4, flush_s=0.05)
    assert not out.due(0.0, whole_blocks=False)
    out.push([7])
    assert out.due(0.0, whole_blocks=False), "however early it is on the engine's clock"
    assert out.take(0.01, SPENT).token_ids == [7]
    out.push([8, 9, 10])
    assert not out.due(0.05, whole_blocks=False)
    assert out.due(0.05, whole_blocks=True)
    assert out.due(0.0601, whole_blocks=False), "for its age"
    out.push([11])
    assert out.due(0.05, whole_blocks=False), "for their number"
    assert out.take(0.05, SPENT).token_ids == [8, 9, 10, 11]
    assert not out.has_unsent


@pytest.mark.parametrize("whole_blocks", [False, True])
def test_nothing_is_due_where_nothing_is_unsent(whole_blocks: bool) -> None:
    out = Output(None, [], flush_tokens=1, flush_s=0.0)
    out.push([1])
    out.take(1.0, SPENT)
    assert not out.due(9.0, whole_blocks)
