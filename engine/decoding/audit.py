"""The audit: how much of a finished block the causal pass over it lets stand (`requests.md` section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from engine.plan import Audit


def kept_tokens(canvas: Seq[int], picks: Seq[int], log_ratios: Seq[float] | None, audit: Audit) -> int:
    """Leading canvas tokens that stay; the token after them is `picks[kept - 1]`, AR's own.

    Args:
        canvas: n block tokens; the first one is AR's choice already and always stays.
        picks: n tokens, AR's choice after each canvas token.
        log_ratios: n - 1 values, log p_AR(canvas[j + 1]) - log p_AR(best) at row j; needed for a tolerance only.
        audit: `off` and `score` keep everything; `exact` keeps what AR would have chosen itself (contract 4.4); a
            tolerance t keeps tokens with p_AR(token) >= t * p_AR(best).
    """
    length = len(canvas)
    if audit in ("off", "score") or length == 1:
        return length
    if audit == "exact":
        for offset in range(length - 1):
            if picks[offset] != canvas[offset + 1]:
                return offset + 1
        return length
    if not isinstance(audit, float) or log_ratios is None:
        raise ValueError(f"audit {audit!r} needs the ratios of the causal pass")

    for offset in range(length - 1):
        if math.exp(log_ratios[offset]) < audit:
            return offset + 1
    return length
