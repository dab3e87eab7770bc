"""A sequence's part of a forward, and what kind of forward the parts make."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from engine.batch import Segment
from engine.deviation import MIXED
from engine.postprocess import Work
from engine.sequence import Phase, Sequence

MOST_OF_IT = 0.75
"""The share of a forward's slots that says what kind of forward it is."""


def segment(sequence: Sequence, tokens: int) -> Segment:
    """The sequence's part of the next forward: a prompt chunk, a draft step, or the look at a canvas."""
    start = sequence.cached
    if sequence.phase is Phase.PREFILL:
        end = start + tokens
        last = end == sequence.prefill_target and not sequence.has_pending
        return Segment(sequence.tokens[start:end], start, True, False, [tokens - 1] if last else [], sequence.pages)
    canvas = sequence.open_canvas
    if sequence.phase is Phase.DRAFT:
        wanted = [offset for offset, hidden in enumerate(canvas.masked) if hidden]
        if sequence.rung.remask is not None:
            # What is settled is judged anew, but not pending, which was there before, nor what was taken back once.
            once = canvas.taken_back
            wanted = [offset for offset in range(1, len(canvas.tokens)) if canvas.masked[offset] or offset not in once]
        return Segment(canvas.tokens, start, False, sequence.rung.uses_draft_adapter, wanted, sequence.pages)
    return look_segment(sequence)


def look_segment(sequence: Sequence) -> Segment:
    """The look at its open canvas."""
    tokens = sequence.open_canvas.tokens
    # Without an audit only the last row matters: it yields the next pending token.
    wanted = list(range(len(tokens))) if sequence.rung.audit != "off" else [len(tokens) - 1]
    return Segment(tokens, sequence.cached, True, False, wanted, sequence.pages)


def following_look(item: Work, forwards: int) -> Segment:
    """AR's look at the token that it will have chosen so many forwards later, which is not known."""
    return Segment([0], item.segment.start + forwards, True, False, [0], item.segment.pages)


def main_block_length(work: Seq[Work], query_tokens: int) -> int:
    """The length of the canvases that make up at least `MOST_OF_IT` of a forward, `MIXED` where there is none."""
    tokens: dict[int, int] = {}
    for item in work:
        if item.phase is not Phase.PREFILL:
            length = item.sequence.rung.block_length
            tokens[length] = tokens.get(length, 0) + len(item.segment.tokens)
    return next((length for length, count in tokens.items() if count >= MOST_OF_IT * query_tokens), MIXED)
