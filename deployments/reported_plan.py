"""The `plan` of a finished answer, read back: which rungs made its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
