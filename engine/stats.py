"""What an engine tells about itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class EngineStats:
    """A snapshot. Counters only grow; the rest is the state at the moment of asking.

    Attributes:
        waiting, running: sequences without and with K/V. waiting_tokens: prompt tokens still to be read.
        pages_total, pages_in_use: of K/V, `page_size` tokens each.
        open_slots, open_context: query tokens and key positions of a forward in which all of them take part.
        queue_s: predicted seconds of forwards that are waiting plus running.
        timed_s: the same of those with a deadline. timed_forward_s, timed_room_s: the mean forward that keeps all their
            deadlines, and what a newcomer may add to it (`engine/pace.py`), seconds; None where nobody minds.
        slip_s: see `Outlook`. step_s: for how long the loop waited of late for what it had begun, 0 before.
        timed_share: of the time of late, what went to sequences with a deadline, 0..1.
        forwards, forward_s: forwards so far and seconds until what they chose was known; busy_s adds the engine's
            other work.
        slots: query tokens so far by kind (`prefill`, `draft`, `look`).
        generated_tokens: settled output tokens by mode. finished: sequences by how they ended.
        prefix_hit_tokens: prompt tokens that came from shared pages.
        tokens_per_forward: measured, by rung.
        cost_model: `ForwardCostModel.summary()`.
    """

    waiting: int = 0
    running: int = 0
    waiting_tokens: int = 0
    pages_total: int = 0
    pages_in_use: int = 0
    page_size: int = 0
    open_slots: int = 0
    open_context: int = 0
    queue_s: float = 0.0
    timed_s: float = 0.0
    timed_forward_s: float = 0.0
    timed_room_s: float | None = None
    slip_s: float = 0.0
    step_s: float = 0.0
    timed_share: float = 0.0
    forwards: int = 0
    forward_s: float = 0.0
    busy_s: float = 0.0
    slots: dict[str, int] = field(default_factory=dict)
    generated_tokens: dict[str, int] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    denoise_steps: int = 0
    draft_steps: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    rung_changes: int = 0
    tokens_per_forward: dict[str, float] = field(default_factory=dict)
    cost_model: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Counters:
    """The counting part of `EngineStats`, owned by the engine's loop."""

    forwards: int = 0
    forward_s: float = 0.0
    busy_s: float = 0.0
    slots: Counter[str] = field(default_factory=Counter)
    generated_tokens: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    denoise_steps: int = 0
    draft_steps: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    rung_changes: int = 0
