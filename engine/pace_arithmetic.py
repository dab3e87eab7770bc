"""What riders of a forward need and add to it, one by one: the arithmetic of `pace.py` and `curve.py`, compiled."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import compiled

Floats = NDArray[np.float64]

OVERRUN_TOKENS = 32.0
"""What a sequence is taken to have ahead of it once it is longer than was expected: what has not ended is no nearer to
its end."""


@compiled
def tokens_ahead(made: float, expected: float, most: float) -> float:
    """Output tokens that a sequence is expected to make yet.

    Args:
        made: that there are. expected: in all. most: `max_tokens`.
    """
    ahead = expected - made
    return max(1.0, min(ahead if ahead > 0 else OVERRUN_TOKENS, most - made))


@compiled
def fill_riders(
    found: Floats,
    terms: Floats,
    length: Floats,
    read: Floats,
    shown: NDArray[np.bool_],
    mean_output: float,
    now: float,
    per_token_s: float,
    per_context_s: float,
    prefill_chunk: float,
) -> None:
    """Fills `found` with the numbers of `Riders` from `tokens` on, a row for each of their fields.

    Args:
        terms: `Sequence.terms` `[riders, terms]`. length, read: tokens in all, and those that need no reading.
        shown: whose first text came, so that it has no deadline any more; empty where nobody's had one.
        mean_output: length to reckon with where the terms have none.
    """
    for rider in range(len(length)):
        expected, first_due_s = terms[rider, 2], terms[rider, 4]
        unread = length[rider] - read[rider]
        if np.isnan(expected):
            expected = mean_output
        if len(shown) and shown[rider]:
            first_due_s = inf
        found[0, rider] = tokens_ahead(length[rider] - terms[rider, 0], expected, terms[rider, 1])
        found[1, rider] = terms[rider, 3] - now
        found[2, rider] = first_due_s - now
        found[3, rider] = per_context_s * length[rider]
        found[4, rider] = np.ceil(unread / prefill_chunk)
        found[5, rider] = per_token_s * unread
        found[6, rider] = 1.0
        found[7, rider] = terms[rider, 5]


@compiled
def fill_pacing(
    paces_s: Floats,
    quickest: NDArray[np.int64],
    most_s: Floats,
    lost_s: Floats,
    limits_s: Floats,
    needed_s: Floats,
    owns_s: Floats,
    table: NDArray[Any],
    last: NDArray[np.int64],
    ladder: NDArray[np.int64],
    first: NDArray[np.int64],
    tokens: Floats,
    left_s: Floats,
    first_left_s: Floats,
    context_s: Floats,
    prompt_forwards: Floats,
    prompt_s: Floats,
    share: Floats,
    reserve: Floats,
    safety: float,
    kept: float,
    lost: float,
) -> None:
    """Fills in what a `Pacing` has.

    Args:
        table, last: of a `StepTable`. ladder to reserve: of `Riders`. safety, kept, lost: the constants of `pace.py`.
    """
    width = paces_s.shape[1]
    for rider in range(len(ladder)):
        row = ladder[rider]
        for place in range(width):
            step = table[row, place]
            forwards = max(1.0, tokens[rider] / step.tokens + step.rest) + prompt_forwards[rider]
            own_s = step.own_s + context_s[rider] + prompt_s[rider] / forwards
            # The prompt's own work is not spread over what comes after the first text.
            until_first_s = (first_left_s[rider] - prompt_s[rider]) / (step.first_forwards + prompt_forwards[rider])
            pace_s = max(min(left_s[rider] / forwards, until_first_s), 0.0) * share[rider]
            paces_s[rider, place] = pace_s
            owns_s[rider, place] = own_s
            needed_s[rider, place] = pace_s / kept
        # What a step leaves of a forward to the others. It is not always the last one that leaves most: it takes more
        # itself, and short answers and first texts pay for a whole large block.
        most_room_s, best, best_s = -inf, 0, -inf
        for place in range(width - 1, -1, -1):
            pace_s = paces_s[rider, place]
            room_s = pace_s / safety - owns_s[rider, place]
            limit_s = pace_s / (reserve[rider] if most_room_s > room_s else safety)
            most_room_s = max(most_room_s, room_s)
            if place < first[rider] or place > last[row]:
                limit_s = -1.0
            limits_s[rider, place] = limit_s
            # Of equals the later one: when all is lost, the fewest forwards.
            if limit_s > best_s:
                best, best_s = place, limit_s
        last_s = paces_s[rider, best]
        quickest[rider] = best
        most_s[rider] = max(best_s, last_s / kept)
        lost_s[rider] = last_s / lost
        limits_s[rider, width] = inf
        needed_s[rider, width] = last_s / kept
        owns_s[rider, width] = owns_s[rider, best]


@compiled
def fill_changes(found: Floats, limits_s: Floats, needed_s: Floats, owns_s: Floats, least_s: float) -> int:
    """Fills `found` with `Changes`, a row for each of their fields, and returns how many there are."""
    # Where no forward is shorter everybody begins: that is one change.
    found[0, 0], found[1, 0], found[2, 0] = least_s, 0.0, 0.0
    count = 1
    for rider in range(len(limits_s)):
        # A rider is on the first step whose limit the forward keeps: beyond the limits of those before.
        start_s, level_before_s, growth_before = least_s, 0.0, 0.0
        for place in range(limits_s.shape[1]):
            end_s, own_s, pace_s = limits_s[rider, place], owns_s[rider, place], needed_s[rider, place]
            if end_s <= start_s:
                continue
            # Until a forward is as long as the pace it rides in a share of them, then in all, until it takes another
            # step: on a step it is shared to the end, turns within it, or rides in all from its beginning.
            growth = own_s / max(pace_s, least_s)
            shared, to_end = pace_s > start_s, pace_s >= end_s
            begun = 0
            if start_s > least_s:
                begun = count
                count += 1
                found[0, begun], found[1, begun], found[2, begun] = start_s, 0.0, 0.0
            found[1, begun] += (0.0 if shared else own_s) - level_before_s
            found[2, begun] += (growth if shared else 0.0) - growth_before
            if shared and not to_end:
                found[0, count] = pace_s
                found[1, count] = own_s
                found[2, count] = -growth
                count += 1
            level_before_s, growth_before = (0.0, growth) if to_end else (own_s, 0.0)
            start_s = end_s
    return count


@compiled
def fill_ride(
    places: NDArray[np.int64],
    tight: NDArray[np.bool_],
    late: NDArray[np.bool_],
    pace_s: Floats,
    limits_s: Floats,
    paces_s: Floats,
    quickest: NDArray[np.int64],
    forward_s: float,
    safety: float,
    lost: float,
) -> None:
    """Fills in what a `Ride` has, from a `Pacing`'s limits, paces and quickest steps."""
    width = paces_s.shape[1]
    for rider in range(len(places)):
        place = 0
        while limits_s[rider, place] < forward_s:
            place += 1
        tight[rider] = place == width
        if place == width:
            place = quickest[rider]
        places[rider] = place
        late[rider] = tight[rider] and paces_s[rider, place] < lost * forward_s
        pace_s[rider] = paces_s[rider, place] / safety


@compiled
def rest_s(at_s: Floats, level_s: Floats, growth: Floats, fixed_s: float) -> float:
    """`Curve.rest_s` of sorted changes."""
    adds_s, grows = 0.0, 0.0
    for place in range(len(at_s)):
        adds_s += level_s[place]
        grows += growth[place]
        taken_s = fixed_s + adds_s
        start_s, end_s = at_s[place], at_s[place + 1] if place + 1 < len(at_s) else inf
        # Where a piece begins there may be room at once: before it somebody took a step that adds more.
        found_s = float(np.nextafter(start_s, inf))
        if found_s > end_s:
            continue
        if taken_s + grows * start_s > start_s:
            # A growth of 1 or more leaves no more room in a longer forward.
            found_s = taken_s / max(1.0 - grows, 1e-300)
        if found_s <= end_s:
            return max(fixed_s, found_s)
    return fixed_s


@compiled
def room_s(at_s: Floats, level_s: Floats, growth: Floats, fixed_s: float, longer_s: float, most_s: float) -> float:
    """`Curve.room_s` of sorted changes."""
    adds_s, grows, room_s = 0.0, 0.0, 0.0
    for place in range(len(at_s)):
        adds_s += level_s[place]
        grows += growth[place]
        start_s, end_s = at_s[place], at_s[place + 1] if place + 1 < len(at_s) else inf
        if start_s < most_s and end_s > longer_s and end_s > start_s:
            length_s = min(end_s, most_s)
            room_s = max(room_s, length_s - fixed_s - adds_s - grows * length_s)
    return room_s
