"""Choosing tokens for all wanted rows of a forward at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.sequence import Sequence


@dataclass(slots=True)
class RowBlock:
    """Consecutive wanted rows of one sequence.

    Attributes:
        first_position: absolute position of the token that the first row chooses; `offsets` count from it.
        stage, step: where the noise comes from (`requests.md` section 3).
    """

    sequence: Sequence
    first_position: int
    offsets: list[int]
    stage: int
    step: int

    @property
    def rows(self) -> int:
        return len(self.offsets)


@dataclass(slots=True)
class Choice:
    """`tokens` int64 `[rows]` and `confidence` float32 `[rows]`, the probability of each token."""

    tokens: Tensor
    confidence: Tensor
