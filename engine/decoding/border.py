"""What happens at a border: tokens settle, pending is set, and the sequence may end."""

from __future__ import annotations

from engine.decoding.canvas import forced_offset
from engine.sequence import Sequence


def keep_within_thinking(sequence: Sequence, tokens: list[int]) -> int:
    """How many of `tokens`, which would follow the output, fit before an end-of-thinking token is due among them."""
    limits = sequence.limits
    if limits.max_thinking_tokens is None:
        return len(tokens)
    opened = sequence.thinking_from
    for place, token in enumerate(tokens):
        offset = sequence.output_tokens + place
        if token == limits.think_close:
            opened = None
        elif opened is not None and offset >= opened + limits.max_thinking_tokens:
            return place
        elif token == limits.think_open and opened is None:
            opened = offset + 1
    return len(tokens)


def append_tokens(sequence: Sequence, tokens: list[int]) -> None:
    """Adds decided tokens to the output and follows thinking sections; one that is open is not opened again."""
    for token in tokens:
        sequence.tokens.append(token)
        if token == sequence.limits.think_open and sequence.thinking_from is None:
            sequence.thinking_from = sequence.output_tokens
        elif token == sequence.limits.think_close:
            sequence.thinking_from = None


def set_pending(sequence: Sequence, token: int) -> None:
    """Makes `token` the next token, or the end-of-thinking token where the budget is used up."""
    forced = forced_offset(sequence)
    if forced is not None and sequence.output_tokens >= forced:
        token = sequence.limits.think_close
    append_tokens(sequence, [token])
    sequence.has_pending = True


def cut_at_limits(sequence: Sequence, first_new: int) -> None:
    """Ends the sequence at the first stop id or at `max_tokens`; `first_new` is the first output offset to look at.

    Tokens after the end are dropped; `finish_reason` says why it ended.
    """
    limits = sequence.limits
    start = sequence.prompt_tokens
    last = min(sequence.output_tokens, limits.max_tokens)
    for offset in range(first_new, last):
        if sequence.tokens[start + offset] in limits.stop_ids:
            del sequence.tokens[start + offset + 1 :]
            sequence.finish_reason = "stop"
            return
    if sequence.output_tokens >= limits.max_tokens:
        del sequence.tokens[start + limits.max_tokens :]
        sequence.finish_reason = "length"


def open_thinking(prompt: list[int], think_open: int, think_close: int) -> bool:
    """Whether the prompt ends inside a thinking section."""
    for token in reversed(prompt):
        if token == think_close:
            return False
        if token == think_open:
            return True
    return False
