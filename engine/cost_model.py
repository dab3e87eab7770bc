"""Time of a forward as a function of its tokens and context, fitted online from the engine's own forwards.

t = base + per_token * query_tokens + per_context * context_tokens, in seconds. The price of a slot in the next forward
follows from it (`slot_price_s`). Fitted by recursive least squares with forgetting; outliers are clipped (Huber), so
that one stall of the machine does not move the coefficients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_SCALE = np.array([1.0, 100.0, 10_000.0])
"""Units in which the features are about 1, so that the normal equations are well conditioned."""


class ForwardCostModel:
    """Predicts the duration of a forward, with its spread."""

    def __init__(self, forgetting: float = 0.998, quantile: float = 0.95) -> None:
        self.forgetting = forgetting
        self.quantile = quantile
        self.observations = 0
        # A weak prior (4 ms a forward, 0.1 ms a token: a laptop) keeps first predictions sane until there is data.
        self._theta = np.array([4e-3, 1e-4, 1e-7]) * _SCALE
        self._moments = np.eye(3) * 1e-2
        self._target = self._moments @ self._theta
        self._spread = 0.2  # mean absolute relative residual
        self._tail = 1.5  # duration / prediction at `quantile`

    @property
    def base_s(self) -> float:
        return float(self._theta[0])

    @property
    def per_token_s(self) -> float:
        return float(self._theta[1] / _SCALE[1])

    @property
    def per_context_s(self) -> float:
        return float(self._theta[2] / _SCALE[2])

    def observe(self, query_tokens: float, context_tokens: float, duration_s: float) -> None:
        """Learns from one forward: its query tokens, the sum of its sequences' key positions, and its duration."""
        if not (duration_s > 0 and math.isfinite(duration_s)):
            return
        predicted = self.predict_s(query_tokens, context_tokens)
        ratio = duration_s / predicted
        warm = self.observations >= 20
        if warm:
            step = 0.02
            self._tail += step * self._tail * (self.quantile if ratio > self._tail else self.quantile - 1)
            self._tail = min(max(self._tail, 1.0), 10.0)
            self._spread += 0.02 * (min(abs(ratio - 1), 2.0) - self._spread)
            limit = max(3 * self._spread, 0.1)
            duration_s = predicted * min(max(ratio, 1 - limit), 1 + limit)
        features = np.array([1.0, query_tokens, context_tokens]) / _SCALE
        # Relative errors matter: a forward of 4 ms and one of 100 ms count alike.
        weight = 1.0 / max(predicted, 1e-6) ** 2 * 1e-4
        self._moments = self.forgetting * self._moments + weight * np.outer(features, features)
        self._target = self.forgetting * self._target + weight * features * duration_s
        self.observations += 1
        if self.observations < 50 or self.observations % 8 == 0:
            self._solve()

    def predict_s(self, query_tokens: float, context_tokens: float, quantile: float = 0.5) -> float:
        """Seconds of such a forward; above the median, times the tail ratio that was seen (0.95 is what is tracked)."""
        median = float(self._theta @ (np.array([1.0, query_tokens, context_tokens]) / _SCALE))
        median = max(median, 1e-6)
        if quantile <= 0.5:
            return median
        return median * (1 + (self._tail - 1) * min((quantile - 0.5) / (self.quantile - 0.5), 1.5))

    def slot_price_s(self) -> float:
        """Seconds that one more slot in a forward costs."""
        return max(self.per_token_s, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Coefficients and state as plain JSON; `from_dict` goes on from there."""
        return {
            "base_s": self.base_s,
            "per_token_s": self.per_token_s,
            "per_context_s": self.per_context_s,
            "tail_ratio": self._tail,
            "spread": self._spread,
            "observations": self.observations,
            "moments": self._moments.tolist(),
            "target": self._target.tolist(),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ForwardCostModel:
        """A model that starts from saved coefficients. Raises KeyError on a file of another shape."""
        model = ForwardCostModel()
        model._theta = np.array([data["base_s"], data["per_token_s"], data["per_context_s"]]) * _SCALE
        model._tail = float(data["tail_ratio"])
        model._spread = float(data["spread"])
        model.observations = int(data["observations"])
        model._moments = np.array(data["moments"], dtype=float)
        model._target = np.array(data["target"], dtype=float)
        return model

    def _solve(self) -> None:
        """Solves the normal equations with non-negative coefficients (dropping the most negative one until none is)."""
        active = [0, 1, 2]
        theta = np.zeros(3)
        while active:
            part = self._moments[np.ix_(active, active)]
            ridge = np.eye(len(active)) * 1e-9 * max(float(np.trace(part)), 1e-12)
            solution = np.linalg.solve(part + ridge, self._target[active])
            if solution.min() >= 0:
                theta[active] = solution
                break
            active.pop(int(solution.argmin()))
        if theta[0] + theta[1] > 0:
            self._theta = theta
