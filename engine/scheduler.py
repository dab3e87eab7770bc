"""Who gets the slots of the next forward. Pure: plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Want:
    """What a sequence asks of the next forward.

    Attributes:
        index: the caller's name for the sequence.
        tokens: query tokens; a prefill may get fewer, everything else all or nothing.
        prefill: whether it is a prompt (or a recomputed prefix) being read.
        last_served: number of the forward it last took part in, -1 for none.
        arrival: order of arrival.
    """

    index: int
    tokens: int
    prefill: bool
    last_served: int
    arrival: float


@dataclass(frozen=True, slots=True)
class Grant:
    """`tokens` slots for the sequence `index`."""

    index: int
    tokens: int


def share_slots(wants: Seq[Want], max_tokens: int, prefill_chunk: int) -> list[Grant]:
    """Fills one forward with up to `max_tokens` slots.

    Running canvases and single tokens go first, the one that waited longest before the others, so that all of them
    advance when not all fit. Prompts share what is left, oldest first, in chunks of at most `prefill_chunk`; one chunk
    (or a quarter of the forward, if that is less) is kept for them, so that a full house never stalls a new request.
    """
    prompts = sorted((want for want in wants if want.prefill), key=lambda want: want.arrival)
    running = sorted((want for want in wants if not want.prefill), key=lambda want: (want.last_served, want.arrival))
    reserved = min(prefill_chunk, max(max_tokens // 4, 1), prompts[0].tokens) if prompts else 0
    grants: list[Grant] = []
    left = max_tokens - reserved
    for want in running:
        if want.tokens <= left:
            grants.append(Grant(want.index, want.tokens))
            left -= want.tokens
    left += reserved
    for want in prompts:
        tokens = min(want.tokens, prefill_chunk, left)
        if tokens <= 0:
            break
        grants.append(Grant(want.index, tokens))
        left -= tokens
    return grants
