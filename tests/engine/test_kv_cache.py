"""Pages of K/V: nothing leaks, nothing shared is overwritten, and a prefix is found only where it is the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from engine.kv_cache import NULL_PAGE, PagePool, page_key, root_key

PAGE = 4
PAGES = 9


@dataclass(eq=False)
class Holder:
    """A sequence as the pool's user: its text, its pages, and how far it has committed."""

    tokens: list[int]
    salt: str | None
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    cached: int = 0


def commit(pool: PagePool, holder: Holder) -> None:
    """Shares the pages that are full, as the engine does after a forward."""
    for index in range(len(holder.keys), holder.cached // PAGE):
        parent = holder.keys[-1] if holder.keys else root_key(holder.salt)
        key = page_key(parent, holder.tokens[index * PAGE : (index + 1) * PAGE])
        holder.keys.append(key)
        pool.share(holder.pages[index], key)


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, write, share and go; the memory is modelled as what was last written to each page."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES + 1, PAGE)
        self.live: list[Holder] = []
        self.memory: dict[int, tuple[object, ...]] = {}

    @rule(
        target=holders,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4 * PAGE),
        salt=st.sampled_from([None, "", "a"]),
    )
    def admit(self, tokens: list[int], salt: str | None) -> object:
        holder = Holder(tokens, salt)
        holder.pages, holder.keys = self.pool.match(tokens, salt)
        holder.cached = len(holder.pages) * PAGE
        assert holder.cached < len(tokens), "the last token is always computed again"
        for index, page in enumerate(holder.pages):
            assert self.memory[page] == (salt, *tokens[: (index + 1) * PAGE]), "a page of other text was shared"
        fresh = self.pool.allocate(-(-len(tokens) // PAGE) - len(holder.pages))
        if fresh is None:
            self.pool.release(holder.pages)
            return multiple()
        held = {page for other in self.live for page in other.pages}
        assert NULL_PAGE not in fresh
        assert not held & set(fresh), "a page that somebody holds was handed out"
        assert len(set(fresh)) == len(fresh)
        for page in fresh:
            self.memory[page] = ("scratch",)
        holder.pages = holder.pages + fresh
        self.live.append(holder)
        return holder

    @rule(holder=holders, steps=st.integers(1, 2 * PAGE))
    def write(self, holder: Holder, steps: int) -> None:
        if holder not in self.live:
            return
        for position in range(holder.cached, min(holder.cached + steps, len(holder.tokens))):
            page = holder.pages[position // PAGE]
            assert all(page not in other.pages for other in self.live if other is not holder), "wrote to a shared page"
            self.memory[page] = (holder.salt, *holder.tokens[: position + 1])
            holder.cached = position + 1
        commit(self.pool, holder)

    @rule(holder=consumes(holders))
    def leave(self, holder: Holder) -> None:
        self.live.remove(holder)
        self.pool.release(holder.pages)

    @invariant()
    def every_page_is_held_or_available(self) -> None:
        held = {page for holder in self.live for page in holder.pages}
        assert self.pool.in_use() == len(held)
        assert self.pool.available == PAGES - len(held)

    def teardown(self) -> None:
        for holder in self.live:
            self.pool.release(holder.pages)
        everything = self.pool.allocate(PAGES)
        assert everything is not None
        assert sorted(everything) == list(range(1, PAGES + 1))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30)


def filled(pool: PagePool, tokens: list[int], salt: str | None = None) -> Holder:
    """A sequence that has committed all of `tokens`."""
    holder = Holder(tokens, salt)
    pages = pool.allocate(-(-len(tokens) // PAGE))
    assert pages is not None
    holder.pages, holder.cached = pages, len(tokens)
    commit(pool, holder)
    return holder


def test_a_prefix_is_found_after_its_sequence_left() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    first = filled(pool, list(range(10)))
    pool.release(first.pages)
    pages, keys = pool.match([*range(8), 77, 78], None)
    assert pages == first.pages[:2]
    assert keys == first.keys[:2]
    assert pool.in_use() == 2


def test_the_last_token_is_never_covered() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    first = filled(pool, list(range(8)))
    assert pool.match(list(range(8)), None)[0] == first.pages[:1]
    assert pool.match(list(range(9)), None)[0] == first.pages[:2]
    assert pool.match([0], None) == ([], [])


def test_pages_that_are_not_full_are_not_shared() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    filled(pool, [1, 2, 3])
    assert pool.match([1, 2, 3, 4, 5], None)[0] == []


@pytest.mark.parametrize(("mine", "other"), [(None, ""), (None, "a"), ("a", "b"), ("", "a"), ("salt:", None)])
def test_another_salt_finds_nothing(mine: str | None, other: str | None) -> None:
    pool = PagePool(PAGES + 1, PAGE)
    filled(pool, list(range(9)), mine)
    assert pool.match(list(range(9)), other)[0] == []
    assert len(pool.match(list(range(9)), mine)[0]) == 2


def test_the_same_tokens_after_another_beginning_are_another_page() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    filled(pool, [0, 0, 0, 0, 5, 5, 5, 5])
    assert pool.match([1, 1, 1, 1, 5, 5, 5, 5, 9], None)[0] == []
    assert pool.match([5, 5, 5, 5, 9], None)[0] == []


def test_without_reuse_nothing_is_found() -> None:
    pool = PagePool(PAGES + 1, PAGE, reuse=False)
    holder = filled(pool, list(range(9)))
    pool.release(holder.pages)
    assert pool.match(list(range(9)), None) == ([], [])
    assert pool.available == PAGES


def test_the_least_recently_used_prefix_goes_first_and_its_end_before_its_beginning() -> None:
    pool = PagePool(5, PAGE)
    old, new = filled(pool, [1] * 8), filled(pool, [2] * 8)
    pool.release(old.pages)
    pool.release(new.pages)
    taken = pool.allocate(1)
    assert taken is not None
    assert len(pool.match([1] * 9, None)[0]) == 1
    assert len(pool.match([2] * 9, None)[0]) == 2


def test_using_a_prefix_again_keeps_it() -> None:
    pool = PagePool(5, PAGE)
    old, new = filled(pool, [1] * 8), filled(pool, [2] * 8)
    pool.release(old.pages)
    pool.release(new.pages)
    pool.release(pool.match([1] * 9, None)[0])
    pool.allocate(2)
    assert len(pool.match([1] * 9, None)[0]) == 2
    assert pool.match([2] * 9, None)[0] == []


def test_too_much_is_refused_and_nothing_taken() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    held = pool.allocate(PAGES - 1)
    assert pool.allocate(2) is None
    assert pool.available == 1
    assert held is not None


def test_a_page_cannot_be_released_twice() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    pages = pool.allocate(2)
    assert pages is not None
    pool.release(pages)
    with pytest.raises(RuntimeError, match="released more often"):
        pool.release(pages)


def test_two_copies_of_a_prefix_share_the_first_one() -> None:
    pool = PagePool(PAGES + 1, PAGE)
    first, second = filled(pool, [3] * 4), filled(pool, [3] * 4)
    assert pool.match([3] * 5, None)[0] == first.pages
    pool.release(first.pages)
    pool.release(first.pages)
    pool.release(second.pages)
    assert pool.in_use() == 0
    assert pool.available == PAGES


def test_a_pool_needs_a_page_besides_the_null_page() -> None:
    with pytest.raises(ValueError, match="pages is 1"):
        PagePool(1, PAGE)
