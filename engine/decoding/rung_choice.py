"""Which rung a sequence uses next: the price of a slot, and the rung that is worth most at that price.

The engine's throughput is sum(tokens per forward) / (time of a forward), and the time grows with the slots that the
sequences take. Maximising such a ratio is a fractional program (Dinkelbach 1967): at the best throughput w, every
sequence takes the rung with the largest  tokens - w * seconds_per_slot * slots.  So w * seconds_per_slot is what a
slot costs in tokens, and one number couples all sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.plan import Rung

Policy = tuple[object, ...]


class TokensPerForward:
    """Tokens per forward of each rung: calibrated where nothing was seen yet, then measured on the running engine."""

    def __init__(self, weight: int = 200) -> None:
        self.weight = weight
        self._forwards: dict[Policy, float] = {}
        self._tokens: dict[Policy, float] = {}

    def observe(self, rung: Rung, tokens: int, forwards: int) -> None:
        """Counts what one block of `rung` gave; old blocks fade after about `weight` forwards."""
        key = rung.policy()
        fade = 1 - forwards / (self.weight * 4)
        self._forwards[key] = self._forwards.get(key, 0.0) * fade + forwards
        self._tokens[key] = self._tokens.get(key, 0.0) * fade + tokens

    def expected(self, rung: Rung) -> float:
        """Tokens per forward of `rung`; the calibrated value weighs as much as `weight` forwards."""
        key = rung.policy()
        prior = rung.expected_tokens_per_forward or 1.0
        forwards = self._forwards.get(key, 0.0)
        return (prior * self.weight + self._tokens.get(key, 0.0)) / (self.weight + forwards)

    def to_dict(self) -> dict[str, float]:
        """Measured values by a readable name of the policy; other threads may ask while the loop observes."""
        return {str(key): tokens / self._forwards[key] for key, tokens in list(self._tokens.items())}


@dataclass(frozen=True, slots=True)
class Load:
    """What shares the forward with the sequences whose rung is to be chosen.

    Attributes:
        fixed_s: seconds of a forward that do not depend on the choice (base and context).
        slot_s: seconds per slot.
        tokens, slots: of the pinned sequences.
    """

    fixed_s: float
    slot_s: float
    tokens: float
    slots: float


def choose_rungs(
    ladders: Mapping[tuple[Rung, ...], int], load: Load, meter: TokensPerForward, rounds: int = 8
) -> dict[tuple[Rung, ...], int]:
    """The rung (index) for each ladder, where `ladders` counts the sequences that have it.

    At equal worth the earlier rung wins, so quality is never given up for nothing.
    """
    worth = {ladder: [(meter.expected(rung), float(rung.block_length)) for rung in ladder] for ladder in ladders}
    choice = dict.fromkeys(ladders, 0)
    throughput = 0.0
    for _ in range(rounds):
        tokens, slots = load.tokens, load.slots
        for ladder, count in ladders.items():
            gained, used = worth[ladder][choice[ladder]]
            tokens += gained * count
            slots += used * count
        throughput = max(throughput, tokens / (load.fixed_s + load.slot_s * slots))
        price = throughput * load.slot_s
        best = {ladder: _most_valuable(values, price) for ladder, values in worth.items()}
        if best == choice:
            break
        choice = best
    return choice


def _most_valuable(values: Seq[tuple[float, float]], price: float) -> int:
    return max(range(len(values)), key=lambda index: (values[index][0] - price * values[index][1], -index))
