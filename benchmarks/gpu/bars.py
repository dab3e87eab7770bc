"""The bars that the GPU path is held to, each with what was measured for it. They are meant for one H200."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.end_to_end import CONCURRENT, MODES
from benchmarks.gpu.forward import CONTEXTS

Row = dict[str, Any]
FORMS = ("14B", "14B narrow", "14B narrow overlapped")
"""Of a forward of one canvas: how the engine runs it by itself, and with options."""
NOT_MEASURED = "not measured"


def judge(sections: dict[str, Row], rehearsal: bool = False) -> list[Row]:
    """`bar`, `value` and `passed` (true, false or "not measured") of every bar.

    Args:
        sections: finished sections by name, as in the report. rehearsal: nothing was measured, whatever they say.
    """
    rows = {} if rehearsal else {row["name"]: row for section in sections.values() for row in section["rows"]}
    return [*_forwards(rows), *_heads(rows), *_others(rows), *_speeds(rows)]


def _bar(text: str, value: float | None, passes: Callable[[Any, Any], bool], limit: float) -> Row:
    return {"bar": text, "value": value, "passed": NOT_MEASURED if value is None else passes(value, limit)}


def _value(rows: dict[str, Row], name: str, field: str) -> Any:
    return rows.get(name, {}).get(field)


def _forwards(rows: dict[str, Row]) -> list[Row]:
    bars = []
    for context in CONTEXTS:
        shares = {name: _value(rows, f"{name}, 1 x {context}", "of_bandwidth") for name in FORMS}
        found = {name: 1 / share for name, share in shares.items() if share is not None}
        best = min(found, key=lambda name: found[name], default=None)
        text = f"14B, one canvas at {context}: <= 1.25x its memory floor"
        text += "" if best is None else f" (the best form: {best})"
        bars.append(_bar(text, None if best is None else found[best], operator.le, 1.25))
        rate = _value(rows, f"14B, 32 x {context}", "of_rate")
        bars.append(_bar(f"14B, 32 canvases at {context}: >= 65% of the product rate", rate, operator.ge, 0.65))
    return bars


def _heads(rows: dict[str, Row]) -> list[Row]:
    """Greedy and sampled apart; head and memory against the better of torch's two."""
    bars = []
    for count, least in ((1024, 1.2), (32, 1.3)):
        for way in ("greedy", "sampled"):
            after, head = (f"{title}, {count} rows, {way}" for title in ("after the product", "head"))
            for rival, factor in (("eager", 3.0), ("compiled", 1.3)):
                text = f"statistics + unmask, {count} rows, {way}: >= {factor}x torch {rival}"
                bars.append(_bar(text, _value(rows, after, f"over_{rival}"), operator.ge, factor))
            faster = _least(rows, head, "over_eager", "over_compiled")
            bars.append(_bar(f"head, {count} rows, {way}: >= {least}x torch's faster form", faster, operator.ge, least))
            leanest, mine = _least(rows, head, "eager_bytes", "compiled_bytes"), _value(rows, head, "extra_bytes")
            value = None if leanest is None or mine is None else mine / leanest
            text = f"head, {count} rows, {way}: < 5% of the extra memory of torch's leaner form"
            bars.append(_bar(text, value, operator.lt, 0.05))
    return bars


def _least(rows: dict[str, Row], name: str, *fields: str) -> Any:
    """The smallest of these figures; None where one of them is missing, because it might have been the smallest."""
    values = [_value(rows, name, field) for field in fields]
    return None if None in values else min(values)


def _others(rows: dict[str, Row]) -> list[Row]:
    share = _value(rows, "reach attention, 1 x 32 rows at 16384", "of_bandwidth")
    numerics = rows.get("14B-shaped layers, bf16 against float32", {})
    gap = numerics.get("largest_gap")
    return [
        _bar("reach attention, one canvas at 16384: >= 70% of the bandwidth", share, operator.ge, 0.7),
        *(
            _bar(
                f"the GPU waits < 5% between forwards of 32 canvases, {mode}",
                _value(rows, f"engine, {mode}, 32", "waiting"),
                operator.lt,
                0.05,
            )
            for mode in ("diffusion", "diffusion by threshold")
        ),
        _bar(
            f"bf16 tokens differ only below a gap of {numerics.get('bound')}; rate {numerics.get('rate')}",
            gap,
            operator.le,
            numerics.get("bound", 0.0),
        ),
    ]


def _speeds(rows: dict[str, Row]) -> list[Row]:
    bars = []
    for concurrency, least in zip(CONCURRENT, (1.5, 12.0), strict=True):
        for mode in MODES:
            mine = _value(rows, f"engine, {mode}, {concurrency}", "tokens_per_s")
            theirs = _value(rows, f"reference, {mode}", "tokens_per_s")
            value = None if mine is None or theirs is None else mine / theirs
            text = f"tokens/s, {mode}, {concurrency} at once: >= {least}x the reference loop"
            bars.append(_bar(text, value, operator.ge, least))
    return bars
