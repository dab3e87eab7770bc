"""Where an answer goes on after its replica died: committed tokens are the resume point. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Attributes:
    tokens: leading output tokens that become part of the prompt.
    repeated_text: characters that the new replica will send again and the client has.
    """

    tokens: int
    repeated_text: int


def resume_point(
    token_ids: Sequence[int], sent_text: str, decode: Callable[[Sequence[int]], str] | None
) -> ResumePoint:
    """The longest run of committed tokens whose text the client has in full.

    Text may lag behind tokens, held back for a stop string or half a character; those tokens are made again, so that
    stop strings across the seam are found.
    """
    if decode is None:
        return ResumePoint(len(token_ids), 0)
    for count in range(len(token_ids), 0, -1):
        text = decode(token_ids[:count])
        if sent_text.startswith(text):
            return ResumePoint(count, len(sent_text) - len(text))
    return ResumePoint(0, len(sent_text))


def already_over(
    token_ids: Sequence[int], max_tokens: int | None, end_ids: Collection[int]
) -> Literal["stop", "length"] | None:
    """How the answer had ended, if only its last event was lost."""
    if token_ids and token_ids[-1] in end_ids:
        return "stop"
    if max_tokens is not None and len(token_ids) >= max_tokens:
        return "length"
    return None


def thinking_used(prompt: Sequence[int], committed: Sequence[int], think_open: int, think_close: int) -> int:
    """Committed tokens inside the thinking section that is open at their end: what its budget has paid already.

    Tokens outside count for none, and a section that was closed has no claim on a later one. Counted as the engine
    does: from the opening marker on, or from the first output token where the prompt ends inside a section.
    """
    marks = [token for token in prompt if token in (think_open, think_close)]
    begun = 0 if marks and marks[-1] == think_open else None
    for place, token in enumerate(committed):
        if token == think_close:
            begun = None
        elif token == think_open and begun is None:
            begun = place + 1
    return 0 if begun is None else len(committed) - begun


def shifted_options(options: dict[str, Any], tokens: int, thought: int) -> dict[str, Any]:
    """The request's limits for what is left after `tokens` output tokens.

    Args:
        thought: how many of them are in the thinking section that is still open (`thinking_used`).
    """
    left = dict(options)
    for name, used in (("max_tokens", tokens), ("min_tokens", tokens), ("max_thinking_tokens", thought)):
        if left.get(name) is not None:
            left[name] = max(0, left[name] - used)
    if left.get("max_tokens") == 0:
        raise ValueError("nothing is left to generate")
    return left


def shifted_plan(plan: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A plan's schedule and expected length, counted from the resume point."""
    schedule = [{**entry, "from_token": max(0, entry["from_token"] - tokens)} for entry in plan.get("schedule", ())]
    begun = [index for index, entry in enumerate(schedule) if entry["from_token"] == 0]
    shifted = {**plan, "schedule": schedule[begun[-1] :] if begun else schedule}
    if plan.get("expected_tokens") is not None:
        shifted["expected_tokens"] = max(1, plan["expected_tokens"] - tokens)
    return shifted
