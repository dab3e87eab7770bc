"""Which replica has read how much of a prompt before: the affinity of prefixes, as this process remembers it.

A replica shares full pages of K/V by a hash chain (`engine/kv_cache.py`); the router makes the same chain of every
prompt and remembers what it sent where. It may be wrong (pages are evicted, other routers send too), so it only makes
predictions better and nothing depends on it: the replica predicts again at admission.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from engine.kv_cache import page_key, root_key

PAGES_KEPT = 16_384
"""Pages remembered per replica; 16 bytes each, so a few MiB for each replica at most."""
MOST_PAGES = 512
"""Pages of one prompt that are looked at."""
EXPECTED_KEPT = 10_000


def chain(tokens: Sequence[int], salt: str | None, page: int, most: int = MOST_PAGES) -> tuple[bytes, ...]:
    """The keys of the full pages of `tokens` that a replica may share, the first `most` of them.

    The last token's page is never covered (`PagePool.match`).
    """
    keys: list[bytes] = []
    parent = root_key(salt)
    for start in range(0, min((len(tokens) - 1) // page, most) * page, page):
        parent = page_key(parent, tokens[start : start + page])
        keys.append(parent)
    return tuple(keys)


class PrefixMemory:
    """Page keys by replica, least recently used ones forgotten first. All methods may be called from any thread."""

    def __init__(self, pages_kept: int = PAGES_KEPT) -> None:
        self.pages_kept = pages_kept
        self._lock = threading.Lock()
        self._pages: dict[str, OrderedDict[bytes, None]] = {}
        self._expected: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()

    def cached_pages(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Leading pages of a chain that each replica has; replicas without any are left out."""
        found: dict[str, int] = {}
        if not keys:
            return found
        with self._lock:
            for replica, pages in self._pages.items():
                count = 0
                for key in keys:
                    if key not in pages:
                        break
                    count += 1
                if count:
                    found[replica] = count
        return found

    def expect(self, request_id: str, keys: tuple[bytes, ...]) -> None:
        """A request with this chain is about to be sent somewhere."""
        if keys:
            with self._lock:
                self._expected[request_id] = keys
                while len(self._expected) > EXPECTED_KEPT:
                    self._expected.popitem(last=False)

    def routed(self, replica: str, request_id: str) -> None:
        """Serve has sent it to this replica, which will read its prompt."""
        with self._lock:
            keys = self._expected.pop(request_id, None)
        if keys:
            self.remember(replica, keys)

    def remember(self, replica: str, keys: Sequence[bytes]) -> None:
        """The replica has these pages, or soon will."""
        with self._lock:
            pages = self._pages.setdefault(replica, OrderedDict())
            # The head of a chain is touched last: without it the rest could not be found.
            for key in reversed(keys):
                pages[key] = None
                pages.move_to_end(key)
            while len(pages) > self.pages_kept:
                pages.popitem(last=False)

    def keep_only(self, replicas: Iterable[str]) -> None:
        """Forgets replicas that are gone."""
        wanted = set(replicas)
        with self._lock:
            for replica in list(self._pages):
                if replica not in wanted:
                    del self._pages[replica]

    def forget(self, replica: str) -> None:
        with self._lock:
            self._pages.pop(replica, None)


PREFIXES = PrefixMemory()
"""The memory of this process; Serve builds request routers itself, so there is no other way to hand it to them."""
