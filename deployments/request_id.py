"""What a request is called: the client's `x-request-id`, or a name of ours."""

from __future__ import annotations

import uuid

HEADER = "x-request-id"
MAX_LENGTH = 128


def request_id(given: str | None) -> str:
    """`given`, the header's value, where it can be used; else a fresh id."""
    return given if given and len(given) <= MAX_LENGTH and given.isprintable() else uuid.uuid4().hex
