"""Incremental text: equal to the whole decode cut at the first stop string, in any chunking."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.tiny
from engine.checkpoint.tokenizer import Tokenizer
from engine.detokenizer import IncrementalDetokenizer

CHECKPOINT = Path(engine.tiny.__file__).parent / "checkpoint"


def load() -> Tokenizer:
    tokenizer = Tokenizer.from_dir(CHECKPOINT)
    assert tokenizer is not None
    return tokenizer


TOKENIZER = load()
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size + 20), max_size=60)
TEXTS = st.text(alphabet=st.sampled_from("ab \nxé€😀ñ1"), max_size=40)
STOPS = st.lists(st.text(alphabet=st.sampled_from("ab xé€1"), min_size=1, max_size=4), max_size=3)


def find_stop(text: str, stops: Iterable[str]) -> tuple[int, int] | None:
    """Start and end of the stop string that is complete first when `text` is read from its start, or None.

    Of two that end at the same character the longer one counts, so that the text before it holds no part of either.
    """
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if not found:
        return None
    end, start = min(found)
    return start, end


def chunked(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in pairwise(places)]


@settings(max_examples=300)
@given(ids=IDS, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_any_ids_in_any_chunks_give_the_whole_decode(ids: list[int], cuts: list[int]) -> None:
    """Special tokens, the mask, ids outside the vocabulary and broken bytes among them."""
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    text = "".join(detokenizer.push(chunk) for chunk in chunked(ids, cuts)) + detokenizer.finish()
    assert text == TOKENIZER.decode(ids)
    assert detokenizer.tokens == len(ids)


@settings(max_examples=400)
@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    ids = TOKENIZER.encode(text, add_bos=False)
    detokenizer = IncrementalDetokenizer(TOKENIZER, stops)
    sent = ""
    for chunk in chunked(ids, cuts):
        sent += detokenizer.push(chunk)
        assert "\ufffd" not in sent
    sent += detokenizer.finish()
    found = find_stop(text, stops)
    assert sent == (text if found is None else text[: found[0]])
    assert detokenizer.stopped == (found is not None)
    if found is None:
        assert detokenizer.stop_token_count is None
    else:
        count = detokenizer.stop_token_count
        assert count is not None
        assert find_stop(TOKENIZER.decode(ids[:count]), stops) is not None
        assert find_stop(TOKENIZER.decode(ids[: count - 1]), stops) is None
        assert detokenizer.tokens == count


@settings(max_examples=200)
@given(text=TEXTS, stops=STOPS, cut=st.integers(0, 1000))
def test_looking_ahead_changes_nothing(text: str, stops: list[str], cut: int) -> None:
    ids = TOKENIZER.encode(text, add_bos=False)
    first, second = ids[: cut % (len(ids) + 1)], ids[cut % (len(ids) + 1) :]
    plain, curious = IncrementalDetokenizer(TOKENIZER, stops), IncrementalDetokenizer(TOKENIZER, stops)
    assert plain.push(first) == curious.push(first)
    ahead = curious.tokens_to_stop(second)
    assert plain.push(second) == curious.push(second)
    assert plain.finish() == curious.finish()
    if ahead is None:
        assert curious.stop_token_count is None or curious.stop_token_count <= len(first)
    else:
        assert curious.stop_token_count == len(first) + ahead


@settings(max_examples=300)
@given(text=TEXTS, stops=STOPS)
def test_find_stop_is_the_first_to_be_complete(text: str, stops: list[str]) -> None:
    """Read character by character, the first prefix that ends with a stop string ends the text."""
    wanted = None
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            wanted = (end - max(lengths), end)
            break
    assert find_stop(text, stops) == wanted


def test_half_a_character_is_held_back_and_flushed_as_a_replacement() -> None:
    ids = TOKENIZER.encode("a😀", add_bos=False)
    assert len(ids) == 5
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert [detokenizer.push([token]) for token in ids] == ["a", "", "", "", "😀"]
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert detokenizer.push(ids[:3]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_the_start_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, ["abab!", "b?"])
    sent = [detokenizer.push(TOKENIZER.encode(character, add_bos=False)) for character in "xababab?ab"]
    assert sent == ["x", "", "", "", "", "ab", "", "aba", "", ""]
    assert detokenizer.stopped
    assert detokenizer.stop_token_count == 8
    assert detokenizer.finish() == ""


def test_an_open_start_of_a_stop_string_is_sent_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, ["END"])
    sent = "".join(detokenizer.push(TOKENIZER.encode(character, add_bos=False)) for character in "the EN")
    assert sent == "the "
    assert detokenizer.finish() == "EN"


@pytest.mark.parametrize("stop", ["a" * 20_000 + "b", "ab" * 10_000 + "c"])
def test_a_long_repetitive_stop_string_costs_constant_time_per_token(stop: str) -> None:
    """40,000 characters that keep nearly completing it take 40,000 cheap steps, not 40,000 comparisons of 20,000."""
    detokenizer = IncrementalDetokenizer(TOKENIZER, [stop])
    ids = TOKENIZER.encode(stop[:-1], add_bos=False)
    whole = "".join(detokenizer.push([token]) for token in ids * 2) + detokenizer.finish()
    assert whole == stop[:-1] * 2
