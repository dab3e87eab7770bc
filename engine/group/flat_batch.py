"""A forward's batch as one flat int64 array, in which it reaches all ranks without pickling.

What travels is the segments. Every rank lays them out by the same pure function (`engine/batch.py`): they are some 30
times smaller than the K/V slots of the layout, all ranks lay out at the same time, and the layout may change without a
word in here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq

import numpy as np

from engine.batch import Segment

FIELDS = 6
"""Numbers of a segment before its lists: tokens, start, causal, drafted, wanted, pages."""


def encode_segments(segments: Seq[Segment]) -> memoryview:
    """A batch as the bytes of one int64 array: their number, `FIELDS` each, then tokens, wanted and pages of each."""
    flat = array("q", (len(segments),))
    for one in segments:
        flat.extend((len(one.tokens), one.start, one.causal, one.drafted, len(one.wanted), len(one.pages)))
    for one in segments:
        flat.extend(one.tokens)
        flat.extend(one.wanted)
        flat.extend(one.pages)
    return memoryview(flat).cast("B")


def decode_segments(payload: bytes | bytearray | memoryview) -> list[Segment]:
    """The segments that `encode_segments` made the bytes of."""
    flat = np.frombuffer(payload, dtype=np.int64)
    count = int(flat[0])
    at = 1 + count * FIELDS
    segments = []
    for tokens, start, causal, drafted, wanted, pages in flat[1:at].reshape(count, FIELDS).tolist():
        ends = (at + tokens, at + tokens + wanted, at + tokens + wanted + pages)
        segments.append(
            Segment(
                tokens=flat[at : ends[0]].tolist(),
                start=start,
                causal=bool(causal),
                drafted=bool(drafted),
                wanted=flat[ends[0] : ends[1]].tolist(),
                pages=array("q", flat[ends[1] : ends[2]].tobytes()),
            )
        )
        at = ends[2]
    return segments
