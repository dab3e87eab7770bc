"""Which rung a sequence uses next: what gives most for its price, and what its deadline asks for.

The engine's throughput is sum(tokens per forward) / (time of a forward), and the time grows with what the sequences
take. Maximising such a ratio is a fractional program (Dinkelbach 1967): at the best throughput w, every sequence takes
the rung with the largest  tokens - w * seconds.  So w is the price of a second of the engine in tokens, and one number
couples all sequences.

A deadline comes before that: from the rung that is worth most it steps to ones that need fewer forwards, of the same
quality first and of a lower one only when none of those is in time (`engine/pace.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from engine.pace import Step
from engine.plan import of_equal_quality

if TYPE_CHECKING:
    from engine.cost_model import ForwardCost
    from engine.deviation import Deviations
    from engine.plan import Rung

Policy = tuple[object, ...]
AS_GOOD = 0.04
"""Loss of throughput below which a rung that needs fewer forwards is preferred: its answers are done sooner."""
WORTH_A_CHANGE = 0.06
"""Gain in throughput below which the rung stays what it was: estimates waver, and canvases of one length share more."""
MOST_LADDERS = 4096
"""That are kept, so that equal ones are one object."""


class TokensPerForward:
    """Tokens per forward of each rung: calibrated where nothing was seen yet, then measured on the running engine."""

    def __init__(self, weight: int = 200) -> None:
        self.weight = weight
        self._seen: dict[Policy, _Seen] = {}
        self._of_ladders: dict[Ladder, tuple[_Seen, ...]] = {}

    def observe(self, rung: Rung, tokens: int, forwards: int) -> None:
        """Counts what one block of `rung` gave; old blocks fade after about `weight` forwards."""
        seen = self._of(rung)
        fade = 1 - forwards / (self.weight * 4)
        seen.forwards = seen.forwards * fade + forwards
        seen.tokens = seen.tokens * fade + tokens

    def expected(self, rung: Rung) -> float:
        """Tokens per forward of `rung`; the calibrated value weighs as much as `weight` forwards."""
        return self._mean(_prior(rung), self._of(rung))

    def expected_of(self, ladder: Ladder) -> list[float]:
        """The same for all rungs of a ladder: asked before every forward, so they are looked up once."""
        seen = self._of_ladders.get(ladder)
        if seen is None:
            if len(self._of_ladders) >= MOST_LADDERS:
                self._of_ladders.clear()
            seen = self._of_ladders[ladder] = tuple(self._of(rung) for rung in ladder.rungs)
        return [self._mean(prior, each) for prior, each in zip(ladder.priors, seen, strict=True)]

    def to_dict(self) -> dict[str, float]:
        """Measured values by a readable name of the policy; other threads may ask while the loop observes."""
        return {str(key): seen.tokens / seen.forwards for key, seen in list(self._seen.items()) if seen.forwards}

    def _mean(self, prior: float, seen: _Seen) -> float:
        return (prior * self.weight + seen.tokens) / (self.weight + seen.forwards)

    def _of(self, rung: Rung) -> _Seen:
        return self._seen.setdefault(rung.policy(), _Seen())


@dataclass(slots=True)
class _Seen:
    """What the blocks of a rung gave and took."""

    tokens: float = 0.0
    forwards: float = 0.0


def _prior(rung: Rung) -> float:
    return rung.expected_tokens_per_forward or rung.least_tokens_per_forward


@dataclass(frozen=True, slots=True)
class Load:
    """What shares the forward with the sequences whose rung is to be chosen.

    Attributes:
        fixed_s: seconds of a forward that do not depend on the choice: its base, and what pinned sequences add.
        tokens: that the pinned sequences get out of a forward.
    """

    fixed_s: float
    tokens: float


class Crowd(NamedTuple):
    """Those that are in the engine.

    Attributes:
        sequences: how many, at least 1. context_s: what the context of one of them adds to a forward.
    """

    sequences: int
    context_s: float


ALONE = Crowd(1, 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class Ladder:
    """A plan's rungs, best to fastest, told apart by identity: one object for all requests with equal rungs.

    Attributes:
        groups: places of rungs of equal expected quality, best first (`engine.plan.of_equal_quality`).
        group_of: of each rung, its place among `groups`.
        lengths, most_forwards, priors: of the rungs' blocks, most forwards of one, and tokens per forward where nothing
            was measured.
    """

    rungs: tuple[Rung, ...]
    groups: tuple[tuple[int, ...], ...]
    group_of: tuple[int, ...]
    lengths: tuple[int, ...]
    most_forwards: tuple[int, ...]
    priors: tuple[float, ...]


@lru_cache(maxsize=MOST_LADDERS)
def ladder_of(rungs: tuple[Rung, ...]) -> Ladder:
    """The ladder of these rungs."""
    groups = of_equal_quality(rungs)
    return Ladder(
        rungs,
        groups,
        tuple(next(place for place, group in enumerate(groups) if index in group) for index in range(len(rungs))),
        tuple(rung.block_length for rung in rungs),
        tuple(rung.most_forwards_per_block for rung in rungs),
        tuple(_prior(rung) for rung in rungs),
    )


@dataclass(frozen=True, slots=True)
class Worth:
    """What the rungs of a ladder give and take, by index.

    Attributes:
        tokens: per forward, within a block. rest: forwards lost in a last block that is not full.
        gained: tokens per forward over a whole answer. own_s: seconds added to a forward, without the context, which is
            the same on every rung. charged_s: the same, with what forwards full of such canvases deviate from the fit.
    """

    tokens: tuple[float, ...]
    rest: tuple[float, ...]
    gained: tuple[float, ...]
    own_s: tuple[float, ...]
    charged_s: tuple[float, ...]


def worth_of(
    ladder: Ladder,
    cost: ForwardCost,
    meter: TokensPerForward,
    answer_tokens: float,
    deviations: Deviations | None = None,
    crowd: Crowd = ALONE,
) -> Worth:
    """As calibrated and measured so far, for answers of so many tokens.

    Args:
        deviations: of kinds of forwards from `cost`; what a kind takes longer is charged to those who make it so.
        crowd: with whom the forward is shared.
    """
    tokens = tuple(max(each, 1e-3) for each in meter.expected_of(ladder))
    # The last block is half empty on average. What an audit throws away is no part of a block.
    rest = tuple(
        0.5 * min(length / each, most) if length > 1 else 0.0
        for length, each, most in zip(ladder.lengths, tokens, ladder.most_forwards, strict=True)
    )
    own_s = tuple(cost.own_s(length, 0) for length in ladder.lengths)
    return Worth(
        tokens,
        rest,
        tuple(answer_tokens / (answer_tokens / each + lost) for each, lost in zip(tokens, rest, strict=True)),
        own_s,
        own_s if deviations is None else _charged_s(ladder.lengths, own_s, cost, deviations, crowd),
    )


def _charged_s(
    lengths: Seq[int], own_s: Seq[float], cost: ForwardCost, deviations: Deviations, crowd: Crowd
) -> tuple[float, ...]:
    base_s, context_s = cost.base_s / crowd.sequences, crowd.context_s
    return tuple(
        max(each_s + (deviations.relative(length, crowd.sequences) - 1) * (base_s + each_s + context_s), 1e-9)
        for length, each_s in zip(lengths, own_s, strict=True)
    )


def throughput(
    ladders: Mapping[Ladder, tuple[int, float]], worth: Mapping[Ladder, Worth], load: Load, rounds: int = 8
) -> float:
    """The best tokens per second that these sequences can make together, each on a rung of its ladder's best quality.

    Args:
        ladders: for each ladder, how many sequences have it and the seconds that their contexts add to a forward.
    """
    best = 0.0
    for _ in range(rounds):
        tokens, seconds = load.tokens, load.fixed_s
        for ladder, (count, context_s) in ladders.items():
            values = worth[ladder]
            index = most_valuable(values, ladder.groups[0], best)
            tokens += values.gained[index] * count
            seconds += values.charged_s[index] * count + context_s
        if tokens / seconds <= best * (1 + 1e-6):
            break
        best = tokens / seconds
    return best


def most_valuable(worth: Worth, indices: Seq[int], price: float) -> int:
    """The index, of those given, that is worth most at `price` tokens a second; the earlier one at equal worth."""
    return max(indices, key=lambda index: (worth.gained[index] - price * worth.charged_s[index], -index))


def preferred(worth: Worth, indices: Seq[int], price: float, before: int | None = None) -> int:
    """Of the rungs, given by index, whose throughput is nearly the best, the one that needs the fewest forwards.

    `before`: the one in use, which may be further from the best.
    """
    best = most_valuable(worth, indices, price)
    near = [
        index
        for index in indices
        if _lost(worth, index, best, price) <= (WORTH_A_CHANGE if index == before else AS_GOOD)
    ]
    return max(near, key=lambda index: worth.gained[index])


def _lost(worth: Worth, index: int, best: int, price: float) -> float:
    """The share of throughput lost with the rung `index` instead of `best`, at whose throughput `price` is.

    With value v = gained - price * charged of both, and as the best one's value pays for the base of the forward, it is
    (v_best - v) / (v_best + price * charged).
    """
    lost = worth.gained[best] - worth.gained[index] - price * (worth.charged_s[best] - worth.charged_s[index])
    return lost / (worth.gained[best] + price * (worth.charged_s[index] - worth.charged_s[best]))


def steps_down(ladder: Ladder, worth: Worth, price: float, first_group: int = 0) -> tuple[Step, ...]:
    """The rungs from the one that is worth most at `price`, each sooner done than all before for some length of answer.

    Smaller blocks are for short answers and first texts, which pay for a whole block. Within a quality the ones that
    add least to a forward come first; `first_group` is the quality to begin with.
    """
    best = most_valuable(worth, ladder.groups[first_group], price)
    chosen = [step_of(ladder.rungs[best], best, worth)]
    for group in ladder.groups[first_group:]:
        for index in sorted(group, key=lambda index: worth.own_s[index]):
            step = step_of(ladder.rungs[index], index, worth)
            if not any(_as_soon(before, step) for before in chosen):
                chosen.append(step)
    return tuple(chosen)


def _as_soon(one: Step, other: Step) -> bool:
    """Whether `one` is done as soon as `other`, however long the answer is."""
    return one.tokens >= other.tokens and one.rest <= other.rest and one.first_forwards <= other.first_forwards


def step_of(rung: Rung, index: int, worth: Worth) -> Step:
    """A rung for `engine/pace.py`."""
    # Diffusion shows a block when it is done; AR and self-speculation what the prompt's last row chose.
    first_forwards = float(rung.most_forwards_per_block) if rung.is_diffusion else 1.0
    return Step(index, worth.tokens[index], worth.rest[index], first_forwards, worth.own_s[index])
