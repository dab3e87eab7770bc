"""Tells thinking from answer in a stream whose model was asked to think."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class ThinkingSplit:
    """Splits text at the end-of-thinking token.

    The token itself has no text, and text may lag behind tokens (half a character, a stop string that may grow), so the
    seam is found in the tokens and kept as a number of characters.
    """

    def __init__(self, close_id: int, decode: Callable[[Sequence[int]], str]) -> None:
        self._close_id = close_id
        self._decode = decode
        self._tokens: list[int] = []
        self._seen = 0
        self._seam: int | None = None

    def push(self, token_ids: Sequence[int], text: str) -> tuple[str, str]:
        """(thinking, answer) of new text."""
        if self._seam is None:
            self._tokens.extend(token_ids)
            if self._close_id in self._tokens:
                thought = self._tokens[: self._tokens.index(self._close_id)]
                self._seam = len(self._decode(thought))
        start = self._seen
        self._seen += len(text)
        if self._seam is None:
            return text, ""
        inside = min(max(self._seam - start, 0), len(text))
        return text[:inside], text[inside:]
