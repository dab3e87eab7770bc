"""How long a request will take on a replica: pure functions of a rung, lengths and a load.

A forward costs what `engine/cost_model.py` says, as each replica has fitted it. A request on a rung needs output /
tokens-per-forward of them. Others ride in the same forwards, so they make each one longer, and some are in front of
it, but both together are no more than the work that they have in all.

The spread has two sources that know nothing of each other, the answer's length and the machine, so p95 / p50 is
exp(hypot(ln length ratio, ln machine ratio)): their logarithms add as independent deviations do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from deployments.history import PRIOR_TAIL
from engine.pace import SAFETY
from engine.plan import Rung

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad


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
    """Seconds in the engine, from submission to the last token and to the first text.

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


class Shape:
    """What of a rung enters a prediction, worked out once.

    Attributes:
        name: of its policy, as replicas name what they measured. mode: its decoding's name.
        fixed: whether the number of forwards follows from the budget alone.
    """

    __slots__ = ("_by_token", "_calibrated", "_least", "_steps", "diffusion", "fixed", "length", "mode", "name", "rung")

    def __init__(self, rung: Rung) -> None:
        self.rung = rung
        self.name = policy_name(rung)
        self.mode = rung.decoding.value
        self.diffusion = rung.is_diffusion
        self.length = rung.block_length
        unaudited = rung.audit in ("off", "score")
        # A round settles at least a token where an audit may cut it, else the whole block, in at most K + 1 forwards.
        self._by_token = not unaudited
        self._steps = rung.most_forwards_per_block
        self._calibrated = rung.expected_tokens_per_forward
        self._least = rung.least_tokens_per_forward
        self.fixed = self.length == 1 or (rung.is_diffusion and rung.threshold is None and unaudited)

    def most_forwards(self, output_tokens: int) -> int:
        """Forwards after the prompt that the rung cannot exceed."""
        if self.length == 1:
            return output_tokens
        rounds = output_tokens if self._by_token else -(-output_tokens // self.length)
        return rounds * self._steps

    def forwards(self, output_tokens: int, measured: Mapping[str, float]) -> float:
        """Forwards after the prompt, from calibrated and measured tokens per forward, within what is possible."""
        most = float(self.most_forwards(output_tokens))
        if self.fixed:
            return most
        rate = self.tokens_per_forward(measured)
        return min(most, max(1.0, output_tokens / rate)) if rate else most

    def tokens_per_forward(self, measured: Mapping[str, float]) -> float | None:
        """Calibrated and measured; None where it is neither."""
        calibrated, seen = self._calibrated, measured.get(self.name)
        if calibrated and seen:
            return (calibrated + seen) / 2
        return calibrated or seen

    def admitted_forwards(self, output_tokens: int, measured: Mapping[str, float]) -> float:
        """Forwards after the prompt as the engine's admission reckons them: with half of a last block for nothing."""
        rate = self.tokens_per_forward(measured) or self._least
        rest = 0.5 * self.length if self.length > 1 else 0.0
        return max(1.0, (output_tokens + rest) / rate)

    @property
    def first_forwards(self) -> float:
        """Forwards after the prompt up to the first text, at most: a diffusion block, or the prompt's own token."""
        return float(self._steps) if self.diffusion else 0.0


class LoadView:
    """A load with everything worked out that does not depend on the request."""

    __slots__ = (
        "base_s", "chunk", "context_s", "cost", "entry_s", "load", "machine", "measured", "others_s", "queue_s",
        "slots", "tails", "token_s", "wait_s",
    )  # fmt: skip

    def __init__(self, load: ReplicaLoad, timed: bool = False) -> None:
        """`timed`: as a request with a deadline meets it, for which those without one make room."""
        cost = self.cost = load.cost
        self.load = load
        self.base_s = cost.base_s + cost.per_sequence_s
        self.token_s = cost.per_token_s
        self.context_s = cost.per_context_s
        self.others_s = load.timed_others_s if timed else load.others_s
        self.queue_s = load.timed_s if timed else load.queue_s
        self.entry_s = min(cost.base_s + load.others_s, load.queue_s) if load.sequences else 0.0
        self.slots = load.slots
        queued = load.waiting and not timed
        self.wait_s = load.queue_s * load.waiting / (load.waiting + load.running) if queued else 0.0
        self.chunk = load.prefill_chunk
        # What was learned of latencies is what the engine's scheduling made of them; whether a deadline can be kept is
        # reckoned as the engine will reckon it.
        self.tails = {} if timed else load.latency_tail
        self.machine = load.tail_ratio - 1.0
        self.measured = load.tokens_per_forward


def predict_on(
    view: LoadView, shape: Shape, prompt_tokens: int, cached_tokens: int, median_tokens: int, reckoned_tokens: int
) -> Prediction:
    """Latency of a request on one rung at one replica; tokens as in `Size`."""
    length, base_s, token_s = shape.length, view.base_s, view.token_s
    unread = prompt_tokens - cached_tokens
    if unread < 1:
        unread = 1
    chunks = -(-unread // view.chunk)
    prompt_s = chunks * base_s + token_s * unread
    own_s = base_s + token_s * length + view.context_s * prompt_tokens
    half_context_s = view.context_s / 2
    others_s, wait_s, queue_s = view.others_s, view.wait_s, view.queue_s
    forwards = shape.forwards(median_tokens, view.measured)
    own_median_s = own_s + half_context_s * median_tokens
    # A newcomer waits for the forward that is under way, half of it on average.
    entry_s = view.entry_s
    p50_s = entry_s / 2 + prompt_s + forwards * own_median_s + min(wait_s + others_s * (forwards + chunks), queue_s)
    tail = view.tails.get(shape.mode, PRIOR_TAIL)
    # One forward's tail averages out over many; a mode's own spread does not.
    machine = max(tail, 1.0 + view.machine / math.sqrt(forwards + chunks))
    if reckoned_tokens == median_tokens:
        p95_s = entry_s + (p50_s - entry_s / 2) * machine
    else:
        more = shape.forwards(reckoned_tokens, view.measured)
        long_s = prompt_s + more * (own_s + half_context_s * reckoned_tokens)
        long_s += min(wait_s + others_s * (more + chunks), queue_s)
        spread = math.hypot(math.log(max(long_s / (p50_s - entry_s / 2), 1.0)), math.log(machine))
        p95_s = entry_s + (p50_s - entry_s / 2) * math.exp(spread)
    first = min(forwards, shape.first_forwards)
    first_s = entry_s + prompt_s + first * own_s + min(wait_s + others_s * (first + chunks), queue_s)
    first_tail = max(tail, 1.0 + view.machine / math.sqrt(first + chunks))
    slots = view.slots
    read = min(unread, view.chunk)
    accelerator_s = (prompt_s + chunks * others_s) * read / (slots + read)
    accelerator_s += forwards * (own_median_s + others_s) * length / (slots + length)
    # As the engine reckons: everybody rides along, forwards of one length, the prompt's chunks among them.
    kept = shape.admitted_forwards(reckoned_tokens, view.measured)
    forward_s = own_s + half_context_s * reckoned_tokens + others_s
    kept_s = SAFETY * ((kept + chunks) * forward_s + token_s * unread)
    first_kept_s = SAFETY * (max(first, 1.0) + chunks) * (forward_s + token_s * unread / (kept + chunks))
    first_kept_s += token_s * unread
    first_p95_s = min(first_s * first_tail, p95_s)
    return Prediction(p50_s, p95_s, kept_s, first_p95_s, first_kept_s, accelerator_s)


def predict(rung: Rung, size: Size, load: ReplicaLoad) -> Prediction:
    """Latency of a request of `size` on `rung` at a replica with `load`."""
    median = size.output_tokens if size.median_tokens is None else size.median_tokens
    view = LoadView(load)
    return predict_on(view, shape_of(rung), size.prompt_tokens, size.cached_tokens, median, size.output_tokens)


def most_forwards(rung: Rung, output_tokens: int) -> int:
    """Forwards after the prompt that a rung cannot exceed: a round settles at least a token, a block at most K + 1."""
    return shape_of(rung).most_forwards(output_tokens)


def expected_forwards(rung: Rung, output_tokens: int, measured: Mapping[str, float]) -> float:
    """Forwards after the prompt, from calibrated and measured tokens per forward, within what is possible."""
    return shape_of(rung).forwards(output_tokens, measured)


def policy_name(rung: Rung) -> str:
    """The name under which replicas report what they measured of a rung."""
    return str(rung.policy())


@lru_cache(maxsize=4096)
def shape_of(rung: Rung) -> Shape:
    return Shape(rung)
