"""Pages of K/V: who holds them, and which hold a prefix that others may share.

Bookkeeping only, on plain integers; the tensors belong to the executor. Only full pages whose every token is
committed are ever shared (`requests.md` section 2), so a shared page is never written again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

NULL_PAGE = 0
"""Holds nothing: padding rows write there, and keys beyond a sequence's pages are read (and masked) there."""


def page_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full page: of its tokens and, through `parent`, of everything before it (16 bytes)."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


def root_key(salt: str | None) -> bytes:
    """Where a hash chain starts: prefixes are shared within the same salt only; no salt is a salt of its own."""
    return hashlib.blake2b(b"" if salt is None else b"salt:" + salt.encode(), digest_size=16).digest()


class PagePool:
    """Reference-counted pages with reuse of committed prefixes; unused shared pages go least recently used first."""

    def __init__(self, pages: int, page_size: int, reuse: bool = True) -> None:
        """`pages` counts the null page, which is never handed out."""
        if pages < 2:
            raise ValueError(f"pages is {pages}; at least 2 are needed (one is the null page)")
        self.page_size = page_size
        self.total = pages - 1
        self.reuse = reuse
        self._free = list(range(pages - 1, 0, -1))
        self._references = [0] * pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that `allocate` can hand out now."""
        return len(self._free) + len(self._unused)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages owned by the caller alone, or None (and nothing taken) when there are not so many."""
        if count > self.available:
            return None
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._unused.popitem(last=False)
                del self._page_of[self._key_of.pop(page)]
            self._references[page] = 1
            pages.append(page)
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Gives pages back; those that hold a shared prefix stay findable until they are needed.

        The last page of a chain is the first to go: without its parents it could not be found.
        """
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] < 0:
                raise RuntimeError(f"page {page} was released more often than taken")
            if self._references[page] == 0:
                if page in self._key_of:
                    self._unused[page] = None
                else:
                    self._free.append(page)

    def match(self, tokens: Sequence[int], salt: str | None) -> tuple[list[int], list[bytes]]:
        """Shared pages that hold the longest known prefix of `tokens`, taken for the caller, with their keys.

        The last token is never covered: its logits are wanted, and it must not be computed into a shared page.
        """
        pages: list[int] = []
        keys: list[bytes] = []
        if not self.reuse:
            return pages, keys
        parent = root_key(salt)
        for start in range(0, (len(tokens) - 1) // self.page_size * self.page_size, self.page_size):
            key = page_key(parent, tokens[start : start + self.page_size])
            page = self._page_of.get(key)
            if page is None:
                break
            if self._references[page] == 0:
                del self._unused[page]
            self._references[page] += 1
            pages.append(page)
            keys.append(key)
            parent = key
        return pages, keys

    def share(self, page: int, key: bytes) -> None:
        """Makes a full, committed page findable, unless another page with the same prefix is already."""
        if self.reuse and key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def in_use(self) -> int:
        """Pages that some sequence holds."""
        return self.total - self.available
