"""Time of a forward as a function of what is in it, fitted online from the engine's own forwards.

t = base + per_sequence * sequences + per_token * query_tokens + per_context * context_tokens, in seconds, with the
engine's work around the forward (scheduling, choosing, settling) in it: that is what a deadline has to wait for.
Fitted by recursive least squares that forgets each kind of forward by itself, because the forwards of a while may all
be of one kind and then say nothing about the others; a factor with a short memory follows the machine's speed. Outliers
are clipped (Huber), so that one stall does not move either. Plain floats: it runs after every forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np

from engine.deviation import MIXED, Deviations, Kind, kind_of

_UNITS = (1.0, 10.0, 100.0, 10_000.0)
"""Units in which the features are about 1, so that the normal equations are well conditioned."""
_LEAST_S = (1e-6, 0.0, 1e-9, 0.0)
_FEATURES = len(_UNITS)
PRIOR = 1e-2
"""Weight of the prior; that of a forward of 10 ms is 1."""
MEMORY = 500
SETTLED = 20
"""Forwards after which the fit is good enough to judge others by."""


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """The coefficients of a forward's time, seconds. The defaults (a laptop) are what is assumed before any forward.

    Attributes:
        base_s: any forward. per_sequence_s: a sequence that takes part. per_token_s: a query token (a slot).
        per_context_s: a key position that a sequence looks at.
    """

    base_s: float = 4e-3
    per_sequence_s: float = 1e-5
    per_token_s: float = 1e-4
    per_context_s: float = 1e-7

    def own_s(self, tokens: float, context: float) -> float:
        """What one sequence with `tokens` query tokens and `context` key positions adds to a forward."""
        return self.per_sequence_s + self.per_token_s * tokens + self.per_context_s * context

    def seconds(self, tokens: float, context: float, sequences: float = 1) -> float:
        """A whole forward: query tokens and key positions over all its sequences."""
        rest = self.per_sequence_s * sequences + self.per_token_s * tokens + self.per_context_s * context
        return max(self.base_s + rest, 1e-6)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ForwardCost:
        """Raises KeyError, TypeError or ValueError on data of another shape."""
        return ForwardCost(**{name: float(data[name]) for name in ForwardCost.__dataclass_fields__})


class Equations:
    """Weighted normal equations of the forwards of one kind; the past counts for `MEMORY` of them at most."""

    def __init__(self, moments: list[list[float]] | None = None, target: list[float] | None = None) -> None:
        """Goes on from saved values. Raises ValueError for another number of features."""
        places = range(_FEATURES)
        self.moments = moments or [[0.0 for _ in places] for _ in places]
        self.target = target or [0.0 for _ in places]
        if len(self.target) != _FEATURES or [len(row) for row in self.moments] != [_FEATURES] * _FEATURES:
            raise ValueError(f"equations of {len(self.target)} features; allowed: {_FEATURES}")

    def add(self, features: Sequence[float], weight: float, duration_s: float) -> None:
        """Counts one forward."""
        fade = 1 - 1 / MEMORY
        for row, value in enumerate(features):
            weighted = weight * value
            moments = self.moments[row]
            for column, other in enumerate(features):
                moments[column] = fade * moments[column] + weighted * other
            self.target[row] = fade * self.target[row] + weighted * duration_s

    def values(self) -> tuple[list[list[float]], list[float]]:
        """As plain JSON."""
        return [list(row) for row in self.moments], list(self.target)


class ForwardCostModel:
    """Predicts the duration of a forward, with its spread.

    Attributes:
        cost: the coefficients as fitted so far, at the machine's present speed.
        observations: forwards seen so far.
        deviations: of kinds of forwards from the fit.
    """

    def __init__(self, quantile: float = 0.95, prior: ForwardCost | None = None) -> None:
        self.quantile = quantile
        self.observations = 0
        # A weak prior keeps first predictions sane until there is data.
        self._prior = self.cost = self._fitted = prior or ForwardCost()
        self._fitted_values = tuple(self._fitted.to_dict().values())
        self._speed = 1.0  # present durations over those of the fit
        self._kinds: dict[Kind, Equations] = {}
        self._spread = 0.2  # mean absolute relative residual
        self._tail = 1.5  # duration / prediction at `quantile`
        self.deviations = Deviations()

    def observe(
        self,
        query_tokens: float,
        context_tokens: float,
        sequences: int,
        duration_s: float,
        block_length: int = MIXED,
    ) -> None:
        """Learns from one forward.

        Args:
            query_tokens, context_tokens, sequences: its slots, its sequences' key positions in all, and how many
                sequences took part.
            block_length: of the canvases that most of it consists of.
        """
        if not (duration_s > 0 and math.isfinite(duration_s)):
            return
        predicted = self.cost.seconds(query_tokens, context_tokens, sequences)
        ratio = duration_s / predicted
        kind = kind_of(block_length, sequences)
        if self.observations >= SETTLED:
            self._tail *= 1 + 0.02 * (self.quantile if ratio > self._tail else self.quantile - 1)
            self._tail = min(max(self._tail, 1.0), 10.0)
            self._spread += 0.02 * (min(abs(ratio - 1), 2.0) - self._spread)
            limit = max(3 * self._spread, 0.1)
            duration_s = predicted * min(max(ratio, 1 - limit), 1 + limit)
            present = duration_s / self._fitted.seconds(query_tokens, context_tokens, sequences)
            self._speed += 0.02 * (present - self._speed)
            self.deviations.observe(kind, present)
        features = (1.0, sequences / _UNITS[1], query_tokens / _UNITS[2], context_tokens / _UNITS[3])
        # Relative errors matter: a forward of 4 ms and one of 100 ms count alike.
        equations = self._kinds.get(kind) or self._kinds.setdefault(kind, Equations())
        equations.add(features, 1e-4 / predicted**2, duration_s)
        self.observations += 1
        if self.observations < 8 or self.observations % (4 if self.observations < 64 else 16) == 0:
            self._solve()
        speed = self._speed
        self.cost = ForwardCost(*(value * speed for value in self._fitted_values))

    def predict_s(
        self, query_tokens: float, context_tokens: float, sequences: float = 1, quantile: float = 0.5
    ) -> float:
        """Seconds of such a forward; above the median, times the tail ratio that was seen (0.95 is what is tracked)."""
        median = self.cost.seconds(query_tokens, context_tokens, sequences)
        if quantile <= 0.5:
            return median
        return median * (1 + (self._tail - 1) * min((quantile - 0.5) / (self.quantile - 0.5), 1.5))

    @property
    def tail_ratio(self) -> float:
        """p95 of a forward's time over its prediction."""
        return self._tail

    def summary(self) -> dict[str, Any]:
        """What planning and dashboards need, as plain JSON."""
        return {"cost": self.cost.to_dict(), "tail_ratio": self._tail, "observations": self.observations}

    def to_dict(self) -> dict[str, Any]:
        """Coefficients and state as plain JSON; `from_dict` goes on from there."""
        return {
            **self.summary(),
            "prior": self._prior.to_dict(),
            "fitted": self._fitted.to_dict(),
            "speed": self._speed,
            "spread": self._spread,
            "kinds": [[*kind, *equations.values()] for kind, equations in self._kinds.items()],
            "deviations": self.deviations.to_dict(),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ForwardCostModel:
        """A model that goes on from saved state. Raises KeyError, TypeError or ValueError on data of another shape."""
        model = ForwardCostModel(prior=ForwardCost.from_dict(data["prior"]))
        model.cost = ForwardCost.from_dict(data["cost"])
        model._fitted = ForwardCost.from_dict(data["fitted"])
        model._fitted_values = tuple(model._fitted.to_dict().values())
        model._speed = float(data["speed"])
        model._tail = float(data["tail_ratio"])
        model._spread = float(data["spread"])
        model.observations = int(data["observations"])
        model._kinds = {
            (int(length), int(power)): Equations(moments, target) for length, power, moments, target in data["kinds"]
        }
        model.deviations = Deviations.from_dict(data["deviations"])
        return model

    def _solve(self) -> None:
        """Solves the normal equations with non-negative coefficients (dropping the most negative one until none is)."""
        kinds = list(self._kinds.values())
        # What was seen of other kinds some time ago is brought to the machine's present speed.
        slower = self.deviations.rebase()
        self._speed /= slower
        for one in kinds:
            one.target = [value * slower for value in one.target]
        moments = np.sum([one.moments for one in kinds], axis=0) + PRIOR * np.eye(_FEATURES)
        prior = np.array([value * unit for value, unit in zip(self._prior.to_dict().values(), _UNITS, strict=True)])
        target = np.sum([one.target for one in kinds], axis=0) + PRIOR * prior
        kept = [True] * _FEATURES
        theta = np.zeros(_FEATURES)
        while any(kept):
            active = list(compress(range(_FEATURES), kept))
            part = moments[np.ix_(active, active)]
            ridge = np.eye(len(active)) * 1e-9 * max(float(np.trace(part)), 1e-12)
            solution = np.linalg.solve(part + ridge, target[active])
            if solution.min() >= 0:
                theta[active] = solution
                break
            kept[active[int(solution.argmin())]] = False
        if theta[:3].sum() > 0:
            values = (float(value) / unit for value, unit in zip(theta, _UNITS, strict=True))
            # Nothing is free, whatever a fit says: throughput and chunks are quotients of these.
            self._fitted = ForwardCost(*(max(value, least) for value, least in zip(values, _LEAST_S, strict=True)))
            self._fitted_values = tuple(self._fitted.to_dict().values())
