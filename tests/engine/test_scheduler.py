"""Slots of a forward: the budget holds, nobody starves, prompts and canvases advance together."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from engine.cost_model import ForwardCost
from engine.scheduler import HOLD, PATIENCE, SMALLEST_CHUNK, Grant, Want
from engine.scheduler import share_slots as share

COST = ForwardCost(base_s=2e-3, per_sequence_s=2e-4, per_token_s=1e-4, per_context_s=1e-7)
MAX_TOKENS = 128
LONGEST_CANVAS = 32


def share_slots(wants: list[Want], max_tokens: int, prefill_chunk: int, hold: float = HOLD) -> list[Grant]:
    return share(wants, COST, max_tokens, prefill_chunk, hold=hold)


@st.composite
def wants(draw: st.DrawFn) -> list[Want]:
    """Sequences as an engine has them: canvases of up to a block, and prompts of any length."""
    count = draw(st.integers(0, 24))
    arrivals = draw(st.permutations(range(count)))
    made = []
    for index in range(count):
        prefill = draw(st.booleans())
        tokens = draw(st.integers(1, 400 if prefill else LONGEST_CANVAS))
        made.append(Want(index, tokens, prefill, draw(st.integers(0, 9)), float(arrivals[index])))
    return made


CHUNKS = st.integers(1, 300)


@given(wants(), CHUNKS)
def test_a_forward_never_has_more_tokens_than_its_budget(asked: list[Want], chunk: int) -> None:
    grants = share_slots(asked, MAX_TOKENS, chunk)
    assert sum(grant.tokens for grant in grants) <= MAX_TOKENS
    assert len({grant.name for grant in grants}) == len(grants)


@given(wants(), CHUNKS)
def test_canvases_get_all_or_nothing_and_prompts_at_most_a_chunk(asked: list[Want], chunk: int) -> None:
    for grant in share_slots(asked, MAX_TOKENS, chunk):
        want = asked[grant.name]
        if want.prefill:
            assert 1 <= grant.tokens <= min(chunk, want.tokens)
        else:
            assert grant.tokens == want.tokens


@given(wants(), CHUNKS)
def test_no_slot_is_left_that_somebody_could_use(asked: list[Want], chunk: int) -> None:
    granted = {grant.name: grant.tokens for grant in share_slots(asked, MAX_TOKENS, chunk)}
    left = MAX_TOKENS - sum(granted.values())
    for want in asked:
        if want.prefill and granted.get(want.name, 0) < min(chunk, want.tokens):
            assert left == 0
        # What is kept for prompts and not used by them is not handed back: at most one chunk.
        if not want.prefill and want.name not in granted:
            assert left < want.tokens + min(chunk, MAX_TOKENS // 4)


@given(wants(), CHUNKS)
def test_a_full_house_leaves_a_chunk_to_the_oldest_prompt(asked: list[Want], chunk: int) -> None:
    prompts = [want for want in asked if want.prefill]
    if not prompts:
        return
    oldest = min(prompts, key=lambda want: want.arrival)
    granted = {grant.name: grant.tokens for grant in share_slots(asked, MAX_TOKENS, chunk)}
    assert granted[oldest.name] >= min(chunk, MAX_TOKENS // 4, oldest.tokens)


def after(state: dict[int, Want], grants: list[Grant]) -> dict[int, Want]:
    """The wants of the next forward: whoever was not served has waited for one more."""
    served = {grant.name: grant.tokens for grant in grants}
    following = {}
    for index, want in state.items():
        left = want.tokens - served.get(index, 0) if want.prefill else want.tokens
        following[index] = want._replace(
            tokens=max(left, 1),
            prefill=want.prefill and left > 0,
            waited=0 if index in served else want.waited + 1,
        )
    return following


@given(wants(), CHUNKS)
def test_every_canvas_is_served_again_within_as_many_forwards_as_there_are_sequences(
    asked: list[Want], chunk: int
) -> None:
    state = {want.name: want._replace(waited=0) for want in asked}
    for _ in range(3 * len(asked) + 1):
        state = after(state, share_slots(list(state.values()), MAX_TOKENS, chunk))
        assert all(want.waited <= len(asked) for want in state.values() if not want.prefill)


@given(wants(), st.integers(1, 64))
def test_every_prompt_is_read_to_its_end(asked: list[Want], chunk: int) -> None:
    state = {want.name: want for want in asked}
    forwards = 0
    while any(want.prefill for want in state.values()):
        forwards += 1
        assert forwards <= sum(want.tokens for want in asked if want.prefill)
        state = after(state, share_slots(list(state.values()), MAX_TOKENS, chunk))


def test_a_canvas_that_does_not_fit_lets_smaller_ones_pass_and_goes_first_next_time() -> None:
    served_long_ago = [Want(index, 30, False, 7, float(index)) for index in range(4)]
    large, small = Want(4, 30, False, 6, 4.0), Want(5, 5, False, 5, 5.0)
    state = {want.name: want for want in [*served_long_ago, large, small]}
    first = share_slots(list(state.values()), MAX_TOKENS, 32)
    assert [grant.name for grant in first] == [0, 1, 2, 3, 5]
    assert share_slots(list(after(state, first).values()), MAX_TOKENS, 32)[0].name == 4


def test_prompts_are_read_in_their_order_of_arrival() -> None:
    asked = [Want(0, 300, True, 0, 2.0), Want(1, 300, True, 0, 1.0)]
    assert [(grant.name, grant.tokens) for grant in share_slots(asked, MAX_TOKENS, 100)] == [(1, 100), (0, 28)]


def seconds(asked: list[Want], grants: list[Grant]) -> float:
    by_index = {want.name: want for want in asked}
    return COST.base_s + sum(COST.own_s(grant.tokens, by_index[grant.name].context) for grant in grants)


@st.composite
def timed_wants(draw: st.DrawFn) -> list[Want]:
    """As `wants`, with contexts, deadlines (some lost) and weights."""
    return [
        want._replace(
            context=draw(st.integers(0, 2000)),
            pace_s=draw(st.sampled_from([inf, inf, 1e-3, 3e-3, 5e-3, 8e-3, 20e-3, 0.2])),
            weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
        )
        for want in draw(wants())
    ]


@given(timed_wants(), CHUNKS, st.floats(1.0, HOLD))
def test_whoever_has_a_deadline_rides_and_the_others_only_up_to_the_tightest_pace(
    asked: list[Want], chunk: int, hold: float
) -> None:
    grants = share_slots(asked, MAX_TOKENS, chunk, hold)
    granted = {grant.name for grant in grants}
    timed = [want for want in asked if want.pace_s < inf]
    tightest = min((want.pace_s for want in timed), default=inf)
    near = {want.name for want in timed if not want.prefill and want.pace_s <= hold * tightest}
    if sum(want.tokens for want in timed if not want.prefill) <= MAX_TOKENS - min(chunk, MAX_TOKENS // 4):
        assert near <= granted
    if not timed:
        return
    by_name = {want.name: want for want in asked}
    own_s = {grant.name: COST.own_s(grant.tokens, by_name[grant.name].context) for grant in grants}
    # Whatever the pace: those nearly as tight, with the smallest chunk of their prompts, and one who waited too long.
    insisted = sum(own_s[name] for name in own_s if by_name[name].pace_s <= hold * tightest)
    overdue = max((own_s[name] for name in own_s if by_name[name].waited >= PATIENCE), default=0.0)
    assert seconds(asked, grants) <= max(tightest, COST.base_s + insisted) + overdue + 1e-12


def test_who_has_waited_too_long_rides_on_top_of_looser_deadlines() -> None:
    tight, loose = Want(0, 1, False, 0, 0.0, pace_s=3e-3), Want(1, 1, False, 0, 1.0, context=1001, pace_s=5e-3)
    waited = Want(2, 1, False, PATIENCE, 2.0)
    grants = share_slots([waited, loose, tight], MAX_TOKENS, 32, hold=1.0)
    assert [grant.name for grant in grants] == [0, 1, 2]
    assert seconds([waited, loose, tight], grants) > tight.pace_s


@given(timed_wants(), CHUNKS)
def test_with_deadlines_everybody_is_served_in_the_end(asked: list[Want], chunk: int) -> None:
    """Nothing starves, although the paces of the others never change (which no deadline does)."""
    state = {want.name: want._replace(waited=0) for want in asked if want.pace_s == inf}
    others = {want.name: want._replace(prefill=False, tokens=1) for want in asked if want.name not in state}
    turns = PATIENCE + 2 * len(asked) + sum(-(-want.tokens // min(chunk, SMALLEST_CHUNK)) for want in asked)
    served: set[int] = set()
    for _ in range(turns):
        grants = share_slots([*state.values(), *others.values()], MAX_TOKENS, chunk)
        served |= {grant.name for grant in grants}
        state = after(state, grants)
    canvases = {want.name for want in state.values() if not want.prefill and want.tokens <= MAX_TOKENS - chunk}
    assert canvases <= served


@given(wants(), CHUNKS, st.floats(0, 10), st.lists(st.floats(1e-6, 10) | st.just(inf), min_size=24, max_size=24))
def test_whatever_a_forward_may_take_somebody_is_in_it(
    asked: list[Want], chunk: int, longest_s: float, paces: list[float]
) -> None:
    timed = [want._replace(pace_s=pace_s) for want, pace_s in zip(asked, paces, strict=False)]
    assert bool(share(timed, COST, MAX_TOKENS, chunk, longest_s)) == bool(asked)


def test_a_late_urgent_request_overtakes_patient_work_at_the_next_forward() -> None:
    patient = [Want(index, 16, False, 1, float(index)) for index in range(6)]
    urgent = Want(9, 16, False, 0, 9.0, pace_s=4e-3)
    grants = share_slots([*patient, urgent], MAX_TOKENS, 32)
    assert [grant.name for grant in grants] == [9]
    assert [grant.name for grant in share_slots(patient, MAX_TOKENS, 32)] == [0, 1, 2, 3, 4, 5]


def test_patient_work_fills_what_a_deadline_leaves() -> None:
    patient = [Want(index, 16, False, 1, float(index)) for index in range(6)]
    urgent = Want(9, 16, False, 0, 9.0, pace_s=8e-3)
    assert [grant.name for grant in share_slots([*patient, urgent], MAX_TOKENS, 32)] == [9, 0, 1]


def test_patient_work_advances_however_tight_the_deadlines_are() -> None:
    patient = Want(0, 16, False, PATIENCE, 0.0)
    urgent = [Want(index, 16, False, 0, float(index), pace_s=4.5e-3) for index in range(1, 5)]
    assert {grant.name for grant in share_slots([patient, *urgent], MAX_TOKENS, 32)} == {0, 1, 2, 3, 4}
    waited_less = patient._replace(waited=PATIENCE - 1)
    assert {grant.name for grant in share_slots([waited_less, *urgent], MAX_TOKENS, 32)} == {1, 2, 3, 4}


def test_a_patient_prompt_is_cut_to_what_a_deadline_leaves() -> None:
    prompt, urgent = Want(0, 300, True, 0, 0.0), Want(1, 16, False, 0, 1.0, pace_s=8e-3)
    grants = dict(share_slots([prompt, urgent], 1024, 256))
    assert grants[1] == 16
    assert SMALLEST_CHUNK <= grants[0] < 50
    assert dict(share_slots([prompt], 1024, 256)) == {0: 256}
