"""Errors that a person reads: what was wrong, with which value, what is allowed."""

from __future__ import annotations


class StepdialError(Exception):
    """Base of the errors that this project raises on purpose."""


class InvalidRequest(StepdialError):
    """A request field has a value that cannot be served.

    Attributes:
        field: the request's name of the field (`"latency_slo_ms"`), or `"body"`.
        message: one sentence that names the field, the value and what is allowed.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class CheckpointError(StepdialError):
    """A checkpoint directory that cannot be loaded; the message lists every problem that was found."""


class EngineStopped(StepdialError):
    """The engine was shut down, or its loop died, while a request was waiting or running."""


class QueueFull(StepdialError):
    """The engine's waiting queue is at its bound; nothing was spent on the request."""


class RankFailed(StepdialError):
    """A rank of a tensor-parallel group could not start, or has ended: the whole group is of no use any more."""
