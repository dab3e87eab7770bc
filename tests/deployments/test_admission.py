"""The replica's last word: exact load, and deadlines that were promised are not given away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.admission import Open, OpenRequests
from deployments.load import ReplicaLoad
from deployments.prediction import Size
from engine.plan import AR, diffusion

LOAD = ReplicaLoad("a", base_s=5e-3, per_token_s=1e-4, latency_tail={"diffusion": 1.0, "ar": 1.0})
SIZE = Size(10, 32)


def test_load_counts_requests_that_the_engine_has_not_seen() -> None:
    requests = OpenRequests()
    requests.add("seen", Open(diffusion(32, 4), SIZE, None))
    requests.add("unseen", Open(diffusion(32, 1), SIZE, None))
    requests.settle("seen", 5)
    assert (requests.slots, requests.context) == (64, 25)
    assert abs(requests.unseen_s({"seen"}, LOAD) - 1e-4 * (10 + 2 * 32)) < 1e-12
    requests.remove("seen")
    requests.remove("seen")
    assert len(requests) == 1


def test_a_newcomer_may_not_make_an_admitted_request_late() -> None:
    requests = OpenRequests()
    # Five forwards of 8.2 ms: 41 ms alone. The newcomer adds 5 x 3.2 ms and its prompt (6 ms).
    requests.add("tight", Open(diffusion(32, 4), SIZE, due_s=1.050))
    assert requests.endangered(diffusion(32, 4), SIZE, LOAD, now_s=1.0) == 1
    assert requests.endangered(AR, Size(1, 1), LOAD, now_s=1.0) == 0
    requests.add("patient", Open(AR, SIZE, due_s=None))
    requests.remove("tight")
    assert requests.endangered(diffusion(32, 4), SIZE, LOAD, now_s=1.0) == 0


def test_a_request_that_is_late_anyway_keeps_nobody_out() -> None:
    requests = OpenRequests()
    requests.add("lost", Open(diffusion(32, 32), SIZE, due_s=1.01))
    assert requests.endangered(diffusion(32, 4), SIZE, LOAD, now_s=1.0) == 0


@given(st.integers(1, 32), st.integers(1, 32), st.floats(0.01, 2))
def test_fewer_steps_never_endanger_more(few: int, more: int, left_s: float) -> None:
    few, more = sorted((few, more))
    requests = OpenRequests()
    requests.add("a", Open(diffusion(32, 8), Size(10, 96), due_s=left_s))
    small, large = (requests.endangered(diffusion(32, steps), SIZE, LOAD, 0.0) for steps in (few, more))
    assert small <= large
