"""Text out of committed tokens: only what no later token can change, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.checkpoint.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns one sequence's tokens into text as they are committed, in constant amortised time per token.

    Bytes of an unfinished character are held back until it is finished, and text that may be the start of a stop
    string until it is known not to be. The text is that of `Tokenizer.decode`, cut before the first stop string.

    Attributes:
        tokens: tokens pushed so far; those after a stop string's end are not counted.
        stopped: whether a stop string was completed; everything pushed later is ignored.
        stop_token_count: tokens up to and including the one that completed the stop string; None before.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """`stops` are not empty strings."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_StopMatcher(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self.tokens = 0
        self.stopped = False
        self.stop_token_count: int | None = None

    def push(self, token_ids: Iterable[int]) -> str:
        """Adds tokens; returns the text that became certain with them."""
        token_bytes, decode = self._tokenizer.token_bytes, self._decoder.decode
        if not self._matchers:
            ids = list(token_ids)
            self.tokens += len(ids)
            return decode(b"".join(map(token_bytes, ids)))
        certain = []
        for token_id in token_ids:
            if self.stopped:
                break
            self.tokens += 1
            text = decode(token_bytes(token_id))
            if text:
                certain.append(self._release(text))
        return "".join(certain)

    def finish(self) -> str:
        """The text that was held back; an unfinished character becomes U+FFFD. Nothing may be pushed afterwards."""
        if self.stopped:
            return ""
        tail = self._decoder.decode(b"", final=True)
        released = self._release(tail)
        held, self._held = self._held, ""
        return released if self.stopped else released + held

    def tokens_to_stop(self, token_ids: Iterable[int]) -> int | None:
        """How many of `token_ids`, would they be pushed now, reach the end of a stop string; None if none does.

        Changes nothing: for tokens of a canvas that may still be cut. None as well once a stop string was completed.
        """
        if self.stopped or not self._matchers:
            return None
        trial = self._fork()
        trial.push(token_ids)
        return None if trial.stop_token_count is None else trial.stop_token_count - self.tokens

    def _release(self, text: str) -> str:
        """Adds characters behind the held ones; returns what cannot be part of a stop string any more."""
        for place, character in enumerate(text):
            completed = [matcher for matcher in self._matchers if matcher.advance(character)]
            if completed:
                start = place + 1 - max(len(matcher.stop) for matcher in completed)
                self.stopped, self.stop_token_count = True, self.tokens
                before = (self._held + text)[: len(self._held) + start]
                self._held = ""
                return before
        everything = self._held + text
        keep = max((matcher.matched for matcher in self._matchers), default=0)
        cut = len(everything) - keep
        self._held = everything[cut:]
        return everything[:cut]

    def _fork(self) -> IncrementalDetokenizer:
        fork = IncrementalDetokenizer(self._tokenizer)
        fork._decoder.setstate(self._decoder.getstate())
        fork._matchers = [matcher.fork() for matcher in self._matchers]
        fork._held, fork.tokens = self._held, self.tokens
        fork.stopped, fork.stop_token_count = self.stopped, self.stop_token_count
        return fork


class _StopMatcher:
    """Knuth-Morris-Pratt over one stop string; its table grows only as far as the text has matched.

    Attributes:
        matched: length of the longest end of the text so far that is a start of the stop string.
    """

    __slots__ = ("_fallback", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0]

    def advance(self, character: str) -> bool:
        """Reads one character; True when it completes the stop string."""
        stop, fallback, matched = self.stop, self._fallback, self.matched
        while matched and stop[matched] != character:
            matched = fallback[matched - 1]
        if stop[matched] == character:
            matched += 1
            if matched > len(fallback):
                self._extend()
        self.matched = matched
        return matched == len(stop)

    def fork(self) -> _StopMatcher:
        fork = _StopMatcher(self.stop)
        fork.matched, fork._fallback = self.matched, self._fallback  # one table: it only ever grows
        return fork

    def _extend(self) -> None:
        stop, fallback = self.stop, self._fallback
        place, length = len(fallback), fallback[-1]
        while length and stop[place] != stop[length]:
            length = fallback[length - 1]
        fallback.append(length + 1 if stop[place] == stop[length] else 0)
