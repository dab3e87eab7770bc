"""Opening a canvas at a border, when its drafting is over, and which forwards need no host between them."""

from __future__ import annotations

from collections.abc import Iterable

from engine.sequence import Canvas, Phase, Sequence

MOST_IN_A_ROW = 4
"""Draft steps, or tokens of AR, that are run without the host: a newcomer may have to wait for so many forwards and the
look after them, and all but one of them are in vain where an answer ends by the first."""
AR_BORDERS = 4
"""Every so many tokens an AR sequence may change its rung."""


def open_canvas(sequence: Sequence, mask_token_id: int) -> None:
    """Puts pending at offset 0 and masks after it, for the block length of the sequence's rung.

    The canvas is shorter only at the end of the context, and where a thinking budget ends inside it: then the forced
    end-of-thinking token is the pending token of the next border.
    """
    length = min(sequence.rung.block_length, sequence.limits.context - sequence.cached)
    forced = forced_offset(sequence)
    if forced is not None:
        length = min(length, forced - (sequence.output_tokens - 1))
    length = max(length, 1)
    sequence.canvas = Canvas(
        tokens=[sequence.tokens[-1]] + [mask_token_id] * (length - 1),
        masked=[False] + [True] * (length - 1),
        masks_left=length - 1,
    )


def steps_left(sequence: Sequence, canvas: Canvas) -> int:
    """K - i for the canvas's next draft step; a canvas shorter than its block still finishes within K steps."""
    return max(min(sequence.rung.refinement_steps, len(canvas.tokens)) - canvas.step, 1)


def steps_in_a_row(sequences: Iterable[Sequence]) -> int:
    """For how many forwards all of these, who share the next one, draft whatever their tokens are; at least 1."""
    return min(MOST_IN_A_ROW, *(_steps_for_certain(sequence) for sequence in sequences))


def steps_without_host(sequences: Iterable[Sequence]) -> int:
    """For how many forwards all of these, who share the next one, may draft without the host having a part in it; at
    least 1. By their tokens they may be done before."""
    return max(1, min(_most_steps(sequence) for sequence in sequences))


def draft_on(sequence: Sequence) -> bool:
    """Whether it drafts on in the canvas that it had in the forward that has just ended."""
    return sequence.canvas is not None and sequence.canvas.drafting


def drafts_end(sequences: Iterable[Sequence], steps: int) -> bool:
    """Whether after so many steps, as `steps_in_a_row` gives them, nothing is left for any of these but the look.

    Not for what may end inside its canvas, as diffusion does: then there is no look, or one at less of it.
    """
    return all(
        not sequence.rung.is_diffusion
        and _is_certain(sequence)
        # Looks are judged canvas by canvas, all of them.
        and sequence.rung.audit != "off"
        and steps >= _steps_for_certain(sequence)
        for sequence in sequences
    )


def _is_certain(sequence: Sequence) -> bool:
    """Whether what its next steps are depends on no token but a stop, and the host has no part in them."""
    if sequence.phase is not Phase.DRAFT or not sequence.rung.known_steps or _asks_the_host(sequence):
        return False
    # Where `max_tokens` cuts the canvas, diffusion is done once no mask lies before that.
    canvas = sequence.open_canvas
    return not sequence.rung.is_diffusion or usable_length(sequence, canvas) == len(canvas.tokens)


def _asks_the_host(sequence: Sequence) -> bool:
    """Whether its tokens are chosen with the host's help, or it may have to end at once."""
    sampling = sequence.sampling
    return sequence.cut or (not sampling.greedy and (sampling.top_k > 0 or sampling.top_p < 1))


def _steps_for_certain(sequence: Sequence) -> int:
    """Draft steps that cannot turn out to be fewer but by a stop, nor need the host: without a threshold, another
    policy, top-k or top-p."""
    return max(1, _most_steps(sequence)) if _is_certain(sequence) else 1


def _most_steps(sequence: Sequence) -> int:
    """Draft steps that it may still have in its canvas; 0 where the host has to lay out every one of them, as with
    remask, which judges other slots in each."""
    if sequence.phase is not Phase.DRAFT or sequence.rung.remask is not None or _asks_the_host(sequence):
        return 0
    # Every step commits ceil(masks / steps left): one at a time where there are fewer masks than steps.
    canvas = sequence.open_canvas
    return min(steps_left(sequence, canvas), canvas.masks_left)


def may_change(sequence: Sequence) -> bool:
    """Whether a border is one to think at: AR has one at every token, of which every `AR_BORDERS`th is enough."""
    ar = sequence.rung.block_length == 1
    return not ar or not sequence.report.plan or sequence.output_tokens % AR_BORDERS == 0


def tokens_in_a_row(sequences: Iterable[Sequence]) -> int:
    """For how many forwards all of these, who share the next one, are AR, each at the token that the one before chose;
    at least 1. An answer may end by a stop before."""
    return min(MOST_IN_A_ROW, *(_tokens_for_certain(sequence) for sequence in sequences))


def _tokens_for_certain(sequence: Sequence) -> int:
    """Tokens that are AR's and need no host: up to the next border to think at, and the answer's and context's end."""
    limits, plan = sequence.limits, sequence.plan
    ar = sequence.phase is Phase.LOOK and sequence.rung.block_length == 1
    if not ar or plan.schedule or limits.max_thinking_tokens is not None or _asks_the_host(sequence):
        return 1
    until_border = MOST_IN_A_ROW if plan.pinned else AR_BORDERS - sequence.output_tokens % AR_BORDERS
    return min(until_border, limits.max_tokens - sequence.output_tokens, limits.context - sequence.cached)


def usable_length(sequence: Sequence, canvas: Canvas) -> int:
    """Canvas tokens that `max_tokens` leaves room for, pending included."""
    return min(len(canvas.tokens), sequence.limits.max_tokens - (sequence.output_tokens - 1))


def ending_length(sequence: Sequence, canvas: Canvas) -> int | None:
    """Canvas tokens up to where the sequence ends inside this canvas, or None when it goes on.

    It ends at the first stop id, or where `max_tokens` cuts, if no mask lies before that point (released rule,
    contract 4.1 d). Drafts that AR verifies have no such rule.
    """
    usable = usable_length(sequence, canvas)
    if 0 <= canvas.first_stop < usable:
        return canvas.first_stop + 1
    limit_inside = sequence.output_tokens - 1 + usable >= sequence.limits.max_tokens
    return usable if limit_inside and len(text_prefix(canvas)) >= usable else None


def forced_offset(sequence: Sequence) -> int | None:
    """Output offset at which the end-of-thinking token is due, or None outside a budgeted thinking section."""
    budget = sequence.limits.max_thinking_tokens
    if budget is None or sequence.thinking_from is None:
        return None
    return sequence.thinking_from + budget


def text_prefix(canvas: Canvas) -> list[int]:
    """Tokens of the canvas before its first mask."""
    first_mask = canvas.masked.index(True) if canvas.masks_left else len(canvas.tokens)
    return canvas.tokens[:first_mask]
