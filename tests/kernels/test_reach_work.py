"""How the work list cuts a batch. The kernel's tests show that it can be followed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.reach_work import FIXED, PLACES, ReachShape, ReachWork, SplitRule, reach_work, rounded_up, tiles_for

TILES = tiles_for(torch.bfloat16)


def work(*parts: tuple[int, int, bool], heads: int = 4, rule: SplitRule | None = None) -> ReachWork:
    """The list of (start, rows, causal) parts for 8 K/V heads, on pages of 32, without padding rows."""
    starts, rows, causal = (np.array(column) for column in zip(*parts, strict=True))
    counts = -(-(starts + rows) // 32)
    pages = np.arange(counts.sum())
    shape = ReachShape(heads, 8, 32, TILES, rule or SplitRule())
    return reach_work(starts, rows, causal, pages, counts, int(rows.sum()), shape)


def spans(made: ReachWork) -> list[tuple[int, int, int, int]]:
    """first_row, first_key, key_end, few of the items that do something, in the order of rows and keys."""
    return sorted((item[1], item[3], item[4], item[7]) for item in made.items.tolist() if item[2])


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 80), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([SplitRule(), SplitRule(128), FIXED]),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 40),
)
def test_every_row_sees_its_keys_once(
    parts: list[tuple[int, int, bool]], rule: SplitRule, heads: int, padding: int
) -> None:
    """Row by row and key by key: what the items of a row take, which page a key is read from, and where the parts of a
    split row are merged from."""
    starts, rows, causal = (np.array(column) for column in zip(*parts, strict=True))
    counts = -(-(starts + rows) // 32) + 1  # a page more than is needed
    pages = np.random.default_rng(len(parts)).permutation(counts.sum())
    own = np.split(pages, np.cumsum(counts)[:-1])
    used = int(rows.sum())
    made = reach_work(starts, rows, causal, pages, counts, used + padding, ReachShape(heads, 8, 32, TILES, rule))
    reach = [
        at + 1 if row_causal else start + count
        for start, count, row_causal in parts
        for at in range(start, start + count)
    ]
    assert made.reach.tolist() == reach + [0] * padding
    part_of = np.repeat(np.arange(len(parts)), rows)
    seen: list[list[tuple[int, int]]] = [[] for _ in range(used + padding)]
    partials: list[set[int]] = [set() for _ in range(used + padding)]
    for page_start, first_row, count, first_key, key_end, least, partial_row, few in made.items.tolist():
        of_item = range(first_row, first_row + count)
        assert count * heads <= (16 if few else TILES.rows)
        assert few == (rule.small_tiles and 0 < count * heads <= 16 and first_row < used) or not count
        for row in of_item:
            seen[row].append((first_key, key_end))
            if partial_row >= 0:
                partials[row].add(partial_row + row - first_row)
            if row < used:
                assert least == min(reach[row] for row in of_item)
                mine = made.pages[page_start + first_key // 32 : page_start + -(-key_end // 32)].tolist()
                assert mine == own[part_of[row]][first_key // 32 : -(-key_end // 32)].tolist()
    for row in range(used):
        begins, ends = zip(*sorted(seen[row]), strict=True)
        assert begins == (0, *ends[:-1])  # no gap, no key twice
        assert ends[-1] >= reach[row]
    assert all(keys == [(0, 0)] for keys in seen[used:])
    merged = {
        row: {first + step * split for split in range(splits)}
        for row, first, step, splits in made.merges.tolist()
        if splits
    }
    assert merged == {row: places for row, places in enumerate(partials) if places}
    taken = [place for places in partials for place in places]
    assert len(set(taken)) == len(taken)
    assert all(place < made.partial_rows for place in taken)


def test_a_canvas_is_one_tile_and_its_splits_start_at_multiples_of_the_rule() -> None:
    made = work((1000, 32, False), rule=SplitRule(512))
    assert spans(made) == [(0, 0, 512, 0), (0, 512, 1024, 0), (0, 1024, 1032, 0)]


def test_a_single_token_takes_the_small_tile_and_a_fixed_rule_the_large_one() -> None:
    assert spans(work((40, 1, True))) == [(0, 0, 41, 1)]
    assert spans(work((40, 1, True), rule=FIXED)) == [(0, 0, 41, 0)]


def test_one_canvas_at_16k_fills_the_places() -> None:
    """32 splits of 512 with 8 K/V heads; the canvas's own keys belong to the last one."""
    made = spans(work((16384, 32, False)))
    assert len(made) * 8 == 256
    assert made[0] == (0, 0, 512, 0)
    assert made[-1] == (0, 31 * 512, 16416, 0)


@pytest.mark.parametrize("canvases", [1, 2, 5, 8, 16, 32, 33, 40, 64])
@pytest.mark.parametrize("context", [512, 4096, 16384, 65536])
def test_places_are_busy_and_few_partial_results_are_left(canvases: int, context: int) -> None:
    """In keys: no program runs much longer than the work over the places, and what is written and read again is small
    against K and V as soon as there are canvases enough."""
    made = work(*[(context, 32, False)] * canvases)
    lengths = [end - start for _, start, end, _ in spans(made)]
    share = canvases * 8 * (context + 32) / PLACES
    rounds = -(-len(lengths) * 8 // PLACES)
    assert rounds * max(lengths) <= 1.7 * share + 320
    partials = sum(merge[3] for merge in made.merges.tolist()) / 32
    if canvases >= 32:
        assert partials * 128 <= 0.2 * canvases * context


def test_a_fixed_rule_cuts_each_part_as_if_it_were_alone() -> None:
    crowd = spans(work((5000, 70, True), *[(16384, 32, False)] * 40, rule=FIXED))
    assert [item for item in crowd if item[0] < 70] == spans(work((5000, 70, True), rule=FIXED))
    assert [item[1] for item in crowd if item[0] == 70] == list(range(0, 16385, 512))


def test_the_longest_items_come_first() -> None:
    lengths = [item[4] - item[3] for item in work((3, 1, True), (700, 32, False), (90, 8, True)).items.tolist()]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_sizes_are_rounded_to_few() -> None:
    assert [rounded_up(count) for count in (0, 1, 16, 17, 24, 25, 33, 48, 49, 64)] == [
        0, 16, 16, 24, 24, 32, 48, 48, 64, 64,
    ]  # fmt: skip


def test_refuses_what_no_tile_holds() -> None:
    with pytest.raises(ValueError, match="256 heads a K/V head do not fit a tile of 128 rows"):
        work((0, 1, True), heads=256)
    with pytest.raises(ValueError, match="split of 500 keys; allowed: multiples of 32"):
        work((0, 1, True), rule=SplitRule(keys=500))
