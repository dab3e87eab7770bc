"""The `plan` of a finished answer, read back: which rungs made its tokens, and what it can tell of a prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.plan import AR, Decoding, Rung, self_speculation


def rung_of_entry(entry: Mapping[str, Any]) -> Rung:
    """The rung of one entry (`PlanEntry.to_dict`), as the calibration names it."""
    mode = Decoding(entry["decoding"])
    if mode is Decoding.AR:
        return AR
    if mode is Decoding.SELF_SPECULATION:
        return self_speculation(entry["block_length"], entry["threshold"])
    return Rung.from_dict(dict(entry))


def rungs_used(entries: Sequence[Mapping[str, Any]]) -> list[Rung]:
    """The rungs of entries that made tokens: one whose successor starts at the same token made none."""
    following = [entry["from_token"] for entry in entries[1:]]
    return [
        rung_of_entry(entry)
        for index, entry in enumerate(entries)
        if index == len(following) or following[index] > entry["from_token"]
    ]


def as_long_as_of(one: Rung, used: Collection[Rung]) -> bool:
    """Whether an answer made with these is as long as with `one` alone: it made all, or all make AR's own tokens."""
    return all(rung.policy() == one.policy() for rung in used) or all(rung.exact for rung in (one, *used))


def as_predicted_of(first: Rung, used: Collection[Rung], *, bounded: bool) -> bool:
    """Whether the time that an answer took tells how right a prediction of `first` was.

    Args:
        bounded: whether it had a deadline. One without is predicted with its first rung, and others of AR's own tokens,
            which the engine takes for its load and the answer's end, are a part of what predictions are off by.
    """
    if bounded or not first.exact:
        return {rung.policy() for rung in used} == {first.policy()}
    return {(rung.exact, rung.decoding) for rung in used} == {(True, first.decoding)}
