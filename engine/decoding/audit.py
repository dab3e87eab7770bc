"""The audit: how much of a finished block the causal pass over it lets stand (`requests.md` section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.packing import moved
from engine.plan import Audit
from kernels.audit import EXACT, KEEP, accept

if TYPE_CHECKING:
    from engine.decoding.choice import Choice

Audited = tuple[Seq[int], Audit, int]
"""A look's canvas tokens, their audit, and the first of its rows in the choice."""


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


def kept_on_device(looks: Seq[Audited], choice: Choice, canvases: Tensor | None = None) -> Tensor:
    """`kept_tokens` of many looks at once, int64 `[looks]`, on the device where the choice is; the host does not wait.

    Args:
        looks: at least one. choice: whose ratios judge the token after each row's.
        canvases: int64 `[looks, width]`, the tokens of these looks, where the host has not seen them.
    """
    if choice.given_ratio is None:
        raise ValueError("an audit by the kernel needs the ratios of the causal pass")
    lengths = [len(tokens) for tokens, _, _ in looks]
    width = max(lengths) if canvases is None else canvases.shape[1]
    row_of = np.zeros((len(looks), width), dtype=np.int64)  # behind a canvas's end: any
    for place, (tokens, _, row) in enumerate(looks):
        row_of[place, : len(tokens)] = np.arange(row, row + len(tokens))
    floors = torch.tensor([_floor(audit) for _, audit, _ in looks], dtype=torch.float32)
    asked = [torch.from_numpy(row_of), torch.tensor(lengths), floors]
    if canvases is None:
        tokens_of = np.zeros((len(looks), width), dtype=np.int64)
        for place, (tokens, _, _) in enumerate(looks):
            tokens_of[place, : len(tokens)] = tokens
        asked.append(torch.from_numpy(tokens_of))
    rows, length, floor, *known = moved(asked, choice.tokens.device)
    canvases = known[0] if canvases is None else canvases
    return accept(canvases, choice.tokens[rows], choice.given_ratio[rows], length, floor).kept


def _floor(audit: Audit) -> float:
    if isinstance(audit, float):
        return math.log(audit)
    return EXACT if audit == "exact" else KEEP
