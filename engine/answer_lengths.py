"""How long answers were lately: on average, and those of requests that allowed about as many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRIOR_TOKENS = 64.0
PRIOR_ANSWERS, MOST_ANSWERS = 20, 100
"""Answers that the prior length counts for, and those that the past counts for at most: lengths spread as widely as
they are long, and a mean of few would make rungs change for nothing."""
REMEMBERED = 64
"""Answers of a class that are remembered one by one."""
NOTHING_SEEN = np.empty(0)


class AnswerLengths:
    """What was seen, in output tokens.

    Callers who know roughly how long an answer will be say so in `max_tokens`, so that answers of requests with about
    the same are about as long: classes are between powers of two.

    Attributes:
        mean: of recent answers.
    """

    def __init__(self) -> None:
        self.mean = PRIOR_TOKENS
        self._answers = PRIOR_ANSWERS
        self._classes: dict[int, _Recent] = {}

    def observe(self, tokens: int, most: int) -> None:
        """Counts an answer that ended by itself or at its `max_tokens`, which were `most`."""
        self.mean += (tokens - self.mean) / self._answers
        self._answers = min(self._answers + 1, MOST_ANSWERS)
        self._classes.setdefault(_class_of(most), _Recent()).add(tokens)

    def like(self, most: int) -> NDArray[np.float64]:
        """Of the latest answers of a request with such `max_tokens`, in any order; empty where there were none."""
        seen = self._classes.get(_class_of(most))
        return NOTHING_SEEN if seen is None else seen.lengths


class _Recent:
    """The latest `REMEMBERED` lengths."""

    def __init__(self) -> None:
        self._all = np.empty(REMEMBERED)
        self._count = 0

    def add(self, tokens: int) -> None:
        self._all[self._count % REMEMBERED] = tokens
        self._count += 1

    @property
    def lengths(self) -> NDArray[np.float64]:
        return self._all[: self._count]


def _class_of(most: int) -> int:
    return (most - 1).bit_length()
