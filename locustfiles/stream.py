"""Reads one streamed answer, event by event, and notes when each block of text arrived."""

from __future__ import annotations

import json
from typing import Any

DATA = b"data: "
DONE = b"[DONE]"


class StreamReader:
    """Server-sent events of a chat or a completion.

    Attributes:
        text: all of it so far. block_s: when each event with text arrived, on the caller's clock.
        said: the `stepdial` object. usage: OpenAI's. error: message of an error event.
        finished: whether the stream came to its end; one that did not was cut off.
    """

    def __init__(self) -> None:
        self.text = ""
        self.block_s: list[float] = []
        self.said: dict[str, Any] = {}
        self.usage: dict[str, int] = {}
        self.error: str | None = None
        self.finished = False

    def take(self, line: bytes, at_s: float) -> None:
        """One line that arrived at `at_s`. Raises ValueError for an event that is not JSON."""
        if not line.startswith(DATA):
            return
        data = line[len(DATA) :].strip()
        if data == DONE:
            self.finished = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]["message"]
            return
        self.said = event.get("stepdial") or self.said
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            piece = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            ids = choice.get("token_ids")
            if piece or ids:
                self.text += piece or ""
                self.block_s.append(at_s)

    @property
    def gaps_ms(self) -> list[float]:
        """Milliseconds between consecutive blocks."""
        pairs = zip(self.block_s, self.block_s[1:], strict=False)
        return [(later - earlier) * 1e3 for earlier, later in pairs]
