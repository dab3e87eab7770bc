"""How long a request will take: pure functions of rungs, lengths and loads, for all rungs at all replicas at once.

A forward costs what `engine/cost_model.py` says, as each replica has fitted it. A request on a rung needs output /
tokens-per-forward of them. Others ride in the same forwards, so they make each one longer, and some are in front of
it, but both together are no more than the work that they have in all.

The spread of the forwards has two sources that know nothing of each other, the answer's length and the machine, so
p95 / p50 is exp(hypot(ln length ratio, ln machine ratio)): their logarithms add as independent deviations do. Before
that the forward under way has to end, of which half is left on average; how much is independent of both, so that the
distances of p95 from p50 add in the same way.

Who comes later and has a deadline goes before a request without one. The share of the time that went to deadlines of
late is lost to that as long as it is there: its own work, and what it finds there without a deadline, has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deployments.prediction_tables import Floats, LoadTable, RungTable
from engine.pace import KEPT, SAFETY

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad
    from engine.plan import Rung


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens of a request.

    Attributes:
        output_tokens: to reckon with (p95). median_tokens: to expect; None = the same.
        cached_tokens: of the prompt, those that are in the replica's shared pages.
    """

    prompt_tokens: int
    output_tokens: int
    median_tokens: int | None = None
    cached_tokens: int = 0


class Prediction(NamedTuple):
    """Seconds in the engine, from submission to the last token and to the first text; nan where that was not asked for.

    Attributes:
        kept_s, first_text_kept_s: the shortest deadlines that the replica's admission would let in: it reckons with the
            whole reckoned length and a margin of its own (`engine/pace.py`).
        accelerator_s: the share of the forwards that the request pays for, by its slots, at the median.
    """

    p50_s: float
    p95_s: float
    kept_s: float
    first_text_p95_s: float
    first_text_kept_s: float
    accelerator_s: float


class Predictions(NamedTuple):
    """A `Prediction` for every rung at every replica: arrays `[rungs, replicas]`."""

    p50_s: Floats
    p95_s: Floats
    kept_s: Floats
    first_text_p95_s: Floats
    first_text_kept_s: Floats
    accelerator_s: Floats

    def at(self, rung: int, replica: int) -> Prediction:
        return Prediction(*(values.item(rung, replica) for values in self))

    def of_replicas(self, replicas: slice) -> Predictions:
        return Predictions(*(values[:, replicas] for values in self))


def predict_all(
    rungs: RungTable,
    loads: LoadTable,
    prompt_tokens: int,
    cached_tokens: Sequence[int],
    median_tokens: Sequence[int],
    reckoned_tokens: Sequence[int],
    first_text: bool = True,
) -> Predictions:
    """Latency of a request on every rung at every replica; tokens as in `Size`.

    Args:
        cached_tokens: by replica. median_tokens, reckoned_tokens: by rung.
        first_text: whether that is wanted, too; most requests have no bound on it, and it is a fifth of the work.
    """
    at, rungs = loads.beside(len(rungs.names)), rungs.across(len(loads))
    shape = len(rungs.names), len(loads)
    median, reckoned, cached = np.empty((3, *shape))
    median.T[:], reckoned.T[:], cached[:] = median_tokens, reckoned_tokens, cached_tokens
    unread = np.maximum(1.0, prompt_tokens - cached)
    chunks = np.ceil(unread / at.chunk)
    read_s = at.token_s * unread
    prompt_s = chunks * at.base_s + read_s
    own_s = at.base_s + at.token_s * rungs.length + at.context_s * prompt_tokens
    longer_s = at.context_s / 2  # by a token of the answer
    rates = loads.rates_of(rungs)
    forwards = rungs.forwards(median, rates)
    median_forward_s = own_s + longer_s * median
    half_entry_s = at.entry_s / 2

    def together_s(count: Floats, forward_s: Floats) -> Floats:
        """So many forwards after the prompt, with what others make of them."""
        own = prompt_s + count * forward_s
        others = np.minimum(at.wait_s + at.others_s * (count + chunks), at.queue_s)
        seconds: Floats = own + others
        if loads.overtaken:
            seconds = np.maximum(seconds, (own + at.patient * others) * at.stretch)
        return seconds

    def with_entry_s(forwards_s: Floats, tail: Floats) -> Floats:
        """The p95 of forwards whose own is `tail` times their median, after the one that a newcomer finds under way:
        half of that is left on average."""
        seconds: Floats = half_entry_s + forwards_s + np.hypot(half_entry_s, forwards_s * (tail - 1))
        return seconds

    ridden_s = together_s(forwards, median_forward_s)
    # One forward's tail averages out over many; a mode's own spread does not.
    tails = loads.tails_of(rungs)
    machine = np.maximum(tails, 1.0 + at.machine / np.sqrt(forwards + chunks))
    longest_forward_s = own_s + longer_s * reckoned
    long_s = together_s(rungs.forwards(reckoned, rates), longest_forward_s)
    spread = np.hypot(np.log(np.maximum(long_s / ridden_s, 1.0)), np.log(machine))
    p95_s = with_entry_s(ridden_s, np.exp(spread))
    read = np.minimum(unread, at.chunk)
    accelerator_s = (prompt_s + chunks * at.others_s) * read / (at.slots + read)
    accelerator_s += forwards * (median_forward_s + at.others_s) * rungs.length / (at.slots + rungs.length)
    # As the engine reckons: everybody rides along, forwards of one length, the prompt's chunks among them. What rides
    # in only some of them makes the mean one longer by that share, which has to fit into the room that others leave.
    kept = rungs.admitted_forwards(reckoned, rates) + chunks
    forward_s = longest_forward_s + at.others_s
    added_s = longest_forward_s - at.bare_s + read_s / kept
    crowded_s = np.where(added_s > at.room_s, KEPT * (at.bare_s + at.others_s) * added_s / at.room_s, 0.0)
    first_p95_s = first_kept_s = np.full_like(p95_s, math.nan)
    if first_text:
        first = np.minimum(forwards, rungs.first_forwards)
        first_tails = np.maximum(tails, 1.0 + at.machine / np.sqrt(first + chunks))
        first_p95_s = np.minimum(with_entry_s(together_s(first, own_s), first_tails), p95_s)
        first_forward_s = np.maximum(SAFETY * (forward_s + read_s / kept), crowded_s)
        first_kept_s = (np.maximum(first, 1.0) + chunks) * first_forward_s + read_s + at.slip_s
    return Predictions(
        p50_s=half_entry_s + ridden_s,
        p95_s=p95_s,
        kept_s=np.maximum(SAFETY * (kept * forward_s + read_s), kept * crowded_s) + at.slip_s,
        first_text_p95_s=first_p95_s,
        first_text_kept_s=first_kept_s,
        accelerator_s=accelerator_s,
    )


def predict(rung: Rung, size: Size, load: ReplicaLoad) -> Prediction:
    """Latency of a request of `size` on `rung` at a replica with `load`."""
    median = size.output_tokens if size.median_tokens is None else size.median_tokens
    loads, cached = LoadTable([load]), [size.cached_tokens]
    return predict_all(_table_of(rung), loads, size.prompt_tokens, cached, [median], [size.output_tokens]).at(0, 0)


def most_forwards(rung: Rung, output_tokens: int) -> int:
    """Forwards after the prompt that a rung cannot exceed: a round settles at least a token, a block at most K + 1."""
    return int(_table_of(rung).most_forwards(np.array(float(output_tokens))).item())


@lru_cache(maxsize=4096)
def _table_of(rung: Rung) -> RungTable:
    return RungTable((rung,))
