"""SLOs given as HTTP headers: Stepdial's own forms, and llm-d's as aliases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.request import GenerationOptions

LATENCY_HEADER, TTFT_HEADER = "x-stepdial-latency-slo-ms", "x-stepdial-ttft-slo-ms"
LLMD_TTFT_HEADER, LLMD_TPOT_HEADER = "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"


def apply_headers(request: GenerationOptions, headers: Mapping[str, str], output_tokens: int) -> None:
    """SLOs given as headers; fields of the body go first. Raises InvalidRequest naming the header.

    llm-d's time per output token becomes a total: time to first token + tokens * time per token.
    """
    latency, ttft = _milliseconds(headers, LATENCY_HEADER), _milliseconds(headers, TTFT_HEADER)
    llmd_ttft, tpot = _milliseconds(headers, LLMD_TTFT_HEADER), _milliseconds(headers, LLMD_TPOT_HEADER)
    first = ttft if ttft is not None else llmd_ttft
    if latency is None and tpot is not None:
        latency = (first or 0.0) + tpot * output_tokens
    if request.latency_slo_ms is None and latency is not None:
        request.latency_slo_ms = latency
    if request.ttft_slo_ms is None and first is not None:
        request.ttft_slo_ms = first


def _milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequest(name, f"{name} is {text!r}; allowed: a number above 0, in milliseconds")
    return value
