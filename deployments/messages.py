"""What travels between a router and a replica: plain, small, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deployments.prediction import Size
from engine.events import Spent


@dataclass(frozen=True, slots=True)
class ReplicaRequest:
    """One request, or what is left of it after a failure.

    Attributes:
        prompt_token_ids: the prompt, and after a failure the output tokens that the client has.
        options: fields of `GenerationOptions` that were set. plan: `Plan.to_dict()`.
        size: prompt and output tokens that the plan reckoned with. tier: name of the request's tier.
        latency_budget_ms, first_text_budget_ms: what is left of the SLO for the engine; a replica that cannot keep it
            refuses before a forward is spent. None = no bound.
        capacity_share: how much of a replica may be promised to this tier and those below it; 1 = all of it.
        work_s, slots: predicted seconds of the accelerator, and query tokens in each forward.
        ranked: replica ids by predicted finish, the one that the plan was made for first. excluded: not these.
    """

    request_id: str
    prompt_token_ids: list[int]
    options: dict[str, Any]
    plan: dict[str, Any]
    size: Size
    tier: str = ""
    latency_budget_ms: float | None = None
    first_text_budget_ms: float | None = None
    capacity_share: float = 1.0
    work_s: float = 0.0
    slots: int = 0
    ranked: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Committed tokens and their text. `spent`: by the answer at this replica so far."""

    token_ids: list[int]
    text: str
    load: dict[str, Any]
    spent: Spent


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer; `report` is the engine's part of the `stepdial` object."""

    finish_reason: str
    report: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    cut_at_deadline: bool
    load: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NotInTime:
    """The replica's last word at admission: not here, on no rung of this plan's ladder.

    Attributes:
        full: its queue is at its bound. earliest_ms: the shortest time from now, in the engine, that it would have
            accepted; None where it can name none.
    """

    full: bool
    earliest_ms: float | None
    load: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Invalid:
    """A field that the engine refuses, before any forward."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine stopped under the request; another replica should go on."""

    message: str


Message = Piece | Done | NotInTime | Invalid | Failed
