"""What of a sequence has been sent: settled tokens become deltas, text waits for whole characters and stop strings."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from engine.detokenizer import IncrementalDetokenizer
from engine.events import Delta

if TYPE_CHECKING:
    from engine.checkpoint.tokenizer import Tokenizer
    from engine.events import Spent


class Output:
    """The sending side of one sequence. Without a tokenizer the text stays empty and only ids are sent."""

    def __init__(self, tokenizer: Tokenizer | None, stop_strings: list[str], flush_tokens: int, flush_s: float) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        self.detokenizer = None if tokenizer is None else IncrementalDetokenizer(tokenizer, stop_strings)
        self.flush_tokens = flush_tokens
        self.flush_s = flush_s
        self.pushed: list[int] = []
        self._sent_tokens = 0
        self._unsent_text = ""
        self._last_flush_s = -inf

    def push(self, tokens: list[int]) -> int | None:
        """Adds settled tokens. Returns how many tokens of the output remain when a stop string was met, else None."""
        self.pushed.extend(tokens)
        if self.detokenizer is None:
            return None
        self._unsent_text += self.detokenizer.push(tokens)
        kept = self.detokenizer.stop_token_count
        if kept is not None:
            del self.pushed[kept:]
        return kept

    def tokens_to_stop(self, tokens: list[int]) -> int | None:
        """How many of `tokens`, would they settle next, reach the end of a stop string; None if none does."""
        if self.detokenizer is None or not self.stop_strings:
            return None
        return self.detokenizer.tokens_to_stop(tokens)

    def due(self, now: float, whole_blocks: bool) -> bool:
        """Whether unsent tokens should go out now: per block, or first token at once, then by count or age."""
        unsent = len(self.pushed) - self._sent_tokens
        if unsent <= 0:
            return False
        return whole_blocks or unsent >= self.flush_tokens or now - self._last_flush_s >= self.flush_s

    def take(self, now: float, spent: Spent) -> Delta:
        """What has not been sent yet, as one event."""
        delta = Delta(self.pushed[self._sent_tokens :], self._unsent_text, spent)
        self._sent_tokens = len(self.pushed)
        self._unsent_text = ""
        self._last_flush_s = now
        return delta

    def finish(self) -> None:
        """Releases text that was held back; nothing follows."""
        if self.detokenizer is not None:
            self._unsent_text += self.detokenizer.finish()

    @property
    def has_unsent(self) -> bool:
        return len(self.pushed) > self._sent_tokens or bool(self._unsent_text)
