"""The line of a client that asks so many things at a time."""

from __future__ import annotations

import gevent
import pytest

from locustfiles.line import Line


def stand(line: Line, name: str, order: list[str]) -> gevent.Greenlet:
    """Somebody who has joined the line, and notes when it is their turn."""

    def wait() -> None:
        with line:
            order.append(name)

    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    return greenlet


def test_who_comes_as_a_place_is_left_does_not_pass_who_waits() -> None:
    line, order = Line(1), list[str]()
    with line:
        waiting = stand(line, "waited", order)
    with line:  # in the same turn of the event loop
        order.append("came as it was left")
    waiting.join()
    assert order == ["waited", "came as it was left"]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_so_many_are_in_at_once_and_in_the_order_they_came(places: int) -> None:
    line, order, inside, most = Line(places), list[int](), 0, 0

    def visit(number: int) -> None:
        nonlocal inside, most
        with line:
            order.append(number)
            inside += 1
            most = max(most, inside)
            gevent.sleep(0.001 * (1 + number % 3))
            inside -= 1

    gevent.joinall([gevent.spawn(visit, number) for number in range(12)], raise_error=True)
    assert order == list(range(12))
    assert most == places


@pytest.mark.parametrize("before_the_place_is_left", [True, False])
def test_who_is_killed_leaves_no_gap(before_the_place_is_left: bool) -> None:
    """Also when the place is left while the kill is on its way."""
    line, order = Line(1), list[str]()
    line.__enter__()
    killed, next_one = stand(line, "killed", order), stand(line, "next", order)
    killed.kill(block=before_the_place_is_left)
    line.__exit__()
    next_one.join(1)
    assert order == ["next"]
    with line:
        order.append("free again")
    assert order == ["next", "free again"]
