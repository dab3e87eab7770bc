"""Prefix affinity: what a router remembers is what a replica's pages would match."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.prefix_memory import PrefixMemory, chain
from engine.kv_cache import PagePool, page_key, root_key

PAGE = 4
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(st.lists(prompts, max_size=6), prompts, st.sampled_from([None, "a"]), st.sampled_from([None, "a"]))
def test_remembered_prefixes_are_those_that_a_replica_shares(
    earlier: list[list[int]], prompt: list[int], their_salt: str | None, salt: str | None
) -> None:
    memory, pool = PrefixMemory(), PagePool(200, PAGE)
    for tokens in earlier:
        memory.remember("a", chain(tokens, their_salt, PAGE))
        # What an engine does with a prompt that it has read: every full page is shared.
        parent = root_key(their_salt)
        for start in range(0, (len(tokens) - 1) // PAGE * PAGE, PAGE):
            parent = page_key(parent, tokens[start : start + PAGE])
            [page] = pool.allocate(1) or []
            pool.share(page, parent)
    found = memory.cached_pages(chain(prompt, salt, PAGE)).get("a", 0)
    assert found == len(pool.match(prompt, salt)[0])
    assert found * PAGE < len(prompt), "the last token is always computed"


def test_only_where_it_was_sent() -> None:
    memory = PrefixMemory()
    keys = chain(range(20), None, PAGE)
    memory.expect("request", keys)
    assert memory.cached_pages(keys) == {}
    memory.routed("b", "request")
    memory.routed("c", "request")
    assert memory.cached_pages(keys) == {"b": 4}
    memory.keep_only({"c"})
    assert memory.cached_pages(keys) == {}


def test_memory_is_bounded_and_the_head_of_a_chain_goes_last() -> None:
    memory = PrefixMemory(pages_kept=6)
    old, new = chain(range(17), None, PAGE), chain(range(100, 117), None, PAGE)
    memory.remember("a", old)
    memory.remember("a", new)
    assert memory.cached_pages(new) == {"a": 4}
    assert memory.cached_pages(old) == {"a": 2}


def test_long_prompts_are_looked_at_up_to_a_bound() -> None:
    assert len(chain(range(10_000), None, PAGE, most=7)) == 7


def test_what_was_expected_and_never_sent_is_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.prefix_memory.EXPECTED_KEPT", 2)
    memory = PrefixMemory()
    chains = [chain(range(place, place + 9), None, PAGE) for place in range(3)]
    for place, keys in enumerate(chains):
        memory.expect(f"request-{place}", keys)
    for place in range(3):
        memory.routed("a", f"request-{place}")
    assert [memory.cached_pages(keys) for keys in chains] == [{}, {"a": 2}, {"a": 2}]
