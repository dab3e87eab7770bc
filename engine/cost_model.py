"""Time of a forward as a function of its tokens and context, fitted online from the engine's own forwards.

t = base + per_token * query_tokens + per_context * context_tokens, in seconds. The price of a slot in the next forward
follows from it (`slot_price_s`). Fitted by recursive least squares with forgetting; outliers are clipped (Huber), so
that one stall of the machine does not move the coefficients. Plain floats: it runs after every forward.
"""

from __future__ import annotations

import math
from itertools import compress
from typing import Any

import numpy as np

_TOKEN_UNIT = 100.0
_CONTEXT_UNIT = 10_000.0
"""Units in which the features are about 1, so that the normal equations are well conditioned."""


class ForwardCostModel:
    """Predicts the duration of a forward, with its spread.

    Attributes:
        base_s, per_token_s, per_context_s: the coefficients, seconds.
        observations: forwards seen so far.
    """

    def __init__(self, forgetting: float = 0.998, quantile: float = 0.95) -> None:
        self.forgetting = forgetting
        self.quantile = quantile
        self.observations = 0
        # A weak prior (4 ms a forward, 0.1 ms a token: a laptop) keeps first predictions sane until there is data.
        self.base_s, self.per_token_s, self.per_context_s = 4e-3, 1e-4, 1e-7
        theta = (self.base_s, self.per_token_s * _TOKEN_UNIT, self.per_context_s * _CONTEXT_UNIT)
        self._moments = [[1e-2 if row == column else 0.0 for column in range(3)] for row in range(3)]
        self._target = [1e-2 * value for value in theta]
        self._spread = 0.2  # mean absolute relative residual
        self._tail = 1.5  # duration / prediction at `quantile`

    def observe(self, query_tokens: float, context_tokens: float, duration_s: float) -> None:
        """Learns from one forward: its query tokens, the sum of its sequences' key positions, and its duration."""
        if not (duration_s > 0 and math.isfinite(duration_s)):
            return
        predicted = self.predict_s(query_tokens, context_tokens)
        ratio = duration_s / predicted
        if self.observations >= 20:
            self._tail *= 1 + 0.02 * (self.quantile if ratio > self._tail else self.quantile - 1)
            self._tail = min(max(self._tail, 1.0), 10.0)
            self._spread += 0.02 * (min(abs(ratio - 1), 2.0) - self._spread)
            limit = max(3 * self._spread, 0.1)
            duration_s = predicted * min(max(ratio, 1 - limit), 1 + limit)
        features = (1.0, query_tokens / _TOKEN_UNIT, context_tokens / _CONTEXT_UNIT)
        # Relative errors matter: a forward of 4 ms and one of 100 ms count alike.
        weight = 1e-4 / predicted**2
        fade = self.forgetting
        for row, value in enumerate(features):
            weighted = weight * value
            moments = self._moments[row]
            for column, other in enumerate(features):
                moments[column] = fade * moments[column] + weighted * other
            self._target[row] = fade * self._target[row] + weighted * duration_s
        self.observations += 1
        if self.observations < 50 or self.observations % 16 == 0:
            self._solve()

    def predict_s(self, query_tokens: float, context_tokens: float, quantile: float = 0.5) -> float:
        """Seconds of such a forward; above the median, times the tail ratio that was seen (0.95 is what is tracked)."""
        median = max(self.base_s + self.per_token_s * query_tokens + self.per_context_s * context_tokens, 1e-6)
        if quantile <= 0.5:
            return median
        return median * (1 + (self._tail - 1) * min((quantile - 0.5) / (self.quantile - 0.5), 1.5))

    def slot_price_s(self) -> float:
        """Seconds that one more slot in a forward costs."""
        return self.per_token_s

    def to_dict(self) -> dict[str, Any]:
        """Coefficients and state as plain JSON; `from_dict` goes on from there."""
        return {
            "base_s": self.base_s,
            "per_token_s": self.per_token_s,
            "per_context_s": self.per_context_s,
            "tail_ratio": self._tail,
            "spread": self._spread,
            "observations": self.observations,
            "moments": [list(row) for row in self._moments],
            "target": list(self._target),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ForwardCostModel:
        """A model that goes on from saved state. Raises KeyError, TypeError or ValueError on data of another shape."""
        model = ForwardCostModel()
        model.base_s = float(data["base_s"])
        model.per_token_s = float(data["per_token_s"])
        model.per_context_s = float(data["per_context_s"])
        model._tail = float(data["tail_ratio"])
        model._spread = float(data["spread"])
        model.observations = int(data["observations"])
        model._moments = [[float(data["moments"][row][column]) for column in range(3)] for row in range(3)]
        model._target = [float(data["target"][row]) for row in range(3)]
        return model

    def _solve(self) -> None:
        """Solves the normal equations with non-negative coefficients (dropping the most negative one until none is)."""
        moments, target = np.array(self._moments), np.array(self._target)
        kept = [True, True, True]
        theta = np.zeros(3)
        while any(kept):
            active = list(compress(range(3), kept))
            part = moments[np.ix_(active, active)]
            ridge = np.eye(len(active)) * 1e-9 * max(float(np.trace(part)), 1e-12)
            solution = np.linalg.solve(part + ridge, target[active])
            if solution.min() >= 0:
                theta[active] = solution
                break
            kept[active[int(solution.argmin())]] = False
        if theta[0] + theta[1] > 0:
            self.base_s = float(theta[0])
            self.per_token_s = float(theta[1]) / _TOKEN_UNIT
            self.per_context_s = float(theta[2]) / _CONTEXT_UNIT
