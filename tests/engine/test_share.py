"""What share of the time something takes, of late."""

from __future__ import annotations

import pytest

from engine.share import Share


def test_a_steady_share_is_found_and_fades_when_it_ends() -> None:
    share = Share(over_s=3.0)
    assert share.now(7.0) == 0.0
    for step in range(1, 2001):
        share.add(100 + step * 0.01, 0.004)
    assert share.now(120.0) == pytest.approx(0.4, rel=0.01)
    assert share.now(123.0) == pytest.approx(0.4 / 2.71828, rel=0.01), "a time constant later"
    assert share.now(119.0) == share.now(120.0), "a reading that another thread took late"


def test_what_has_not_begun_counts_as_idle_and_no_share_is_above_the_whole() -> None:
    share = Share(over_s=3.0)
    share.add(100.0, 1.5)
    assert share.now(100.0) == pytest.approx(0.5)
    share.add(100.0, 10.0)
    assert share.now(100.0) == 1.0
