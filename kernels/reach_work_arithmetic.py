"""How a batch is cut into the items of reach attention: the arithmetic of `reach_work.py`, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import compiled

Numbers = NDArray[np.int64]
Fields = NDArray[np.int32]


@compiled
def tiles_of(starts: Numbers, rows: Numbers, causal: Numbers, tile_tokens: int) -> Numbers:
    """Row tiles of so many tokens at most, int64 `[tiles, 5]`: its segment, its first row in the batch, its rows, the
    largest and the smallest reach of a row in it."""
    count = 0
    for segment in range(len(rows)):
        count += -(-rows[segment] // tile_tokens)
    tiles = np.empty((count, 5), np.int64)
    tile = first_row = 0
    for segment in range(len(rows)):
        end = starts[segment] + rows[segment]
        for skipped in range(0, rows[segment], tile_tokens):
            size = min(tile_tokens, rows[segment] - skipped)
            tiles[tile, 0] = segment
            tiles[tile, 1] = first_row + skipped
            tiles[tile, 2] = size
            tiles[tile, 3] = starts[segment] + skipped + size if causal[segment] else end
            tiles[tile, 4] = starts[segment] + skipped + 1 if causal[segment] else end
            tile += 1
        first_row += rows[segment]
    return tiles


@compiled
def splits_of(tiles: Numbers, keys: int, whole: bool) -> Numbers:
    """Splits of `keys` keys of every tile. A rest of less than half a split belongs to the one before it, or is one of
    its own where all are to be `whole`."""
    splits = np.empty(len(tiles), np.int64)
    for tile in range(len(tiles)):
        most = tiles[tile, 3]
        splits[tile] = -(-most // keys) if whole else max((most + keys // 2) // keys, 1)
    return splits


@compiled
def chosen_split(
    tiles: Numbers, heads_per_kv_head: int, kv_heads: int, places: int, least_split: int, start_keys: int
) -> int:
    """The split with the shortest estimated launch, among `least_split` times powers of two.

    A program costs its keys, a start, and its product rows if it leaves partial results: a row's sums are half as many
    bytes as one key's K and V, and are written and read. Up to `places` programs run at once and the longest is the
    launch; of more, the work over the places and half a program at the end.

    Args:
        kv_heads: programs of each split. start_keys: what the start of a program costs, in keys.
    """
    best, shortest = least_split, np.inf
    keys = least_split
    while True:
        splits = splits_of(tiles, keys, False)
        longest, work, programs = 0.0, 0.0, 0
        for tile in range(len(tiles)):
            cost = tiles[tile, 3] / splits[tile] + start_keys
            if splits[tile] > 1:
                cost += tiles[tile, 2] * heads_per_kv_head
            longest = max(longest, cost)
            work += splits[tile] * cost
            programs += splits[tile] * kv_heads
        launch = longest if programs <= places else work * kv_heads / places + longest / 2
        if launch < shortest:
            best, shortest = keys, launch
        if splits.max() == 1:
            return best
        keys *= 2


@compiled
def needed(tiles: Numbers, splits: Numbers) -> tuple[int, int, int]:
    """Items, merges, and rows of partial results."""
    items = merges = partial_rows = 0
    for tile in range(len(tiles)):
        items += splits[tile]
        if splits[tile] > 1:
            merges += tiles[tile, 2]
            partial_rows += splits[tile] * tiles[tile, 2]
    return items, merges, partial_rows


@compiled
def _fill_reach(reach: Fields, tiles: Numbers) -> int:
    """The reach of every row. Returns the number of rows."""
    used = 0
    for tile in range(len(tiles)):
        for row in range(tiles[tile, 2]):
            # Where rows are not causal, the smallest is the largest.
            reach[used] = min(tiles[tile, 4] + row, tiles[tile, 3])
            used += 1
    return used


@compiled
def _fill_pages(table: Fields, pages: Numbers, page_counts: Numbers, ends: Numbers, page_size: int) -> Numbers:
    """The pages that each sequence needs. Returns where each one's begin."""
    first_page = np.empty(len(ends), np.int64)
    place = first = 0
    for sequence in range(len(ends)):
        first_page[sequence] = place
        for page in range(-(-ends[sequence] // page_size)):
            table[place] = pages[first + page]
            place += 1
        first += page_counts[sequence]
    return first_page


@compiled
def _fill_items(
    items: Fields, tiles: Numbers, splits: Numbers, split_keys: int, first_page: Numbers, few_tokens: int
) -> int:
    """The items, tile after tile, of each the last split first: it may be the longest. Returns their number."""
    item = partial_row = 0
    for tile in range(len(tiles)):
        several = splits[tile] > 1
        for split in range(splits[tile] - 1, -1, -1):
            first_key = split * split_keys
            items[item, 0] = first_page[tiles[tile, 0]]
            items[item, 1] = tiles[tile, 1]
            items[item, 2] = tiles[tile, 2]
            items[item, 3] = first_key
            items[item, 4] = first_key + split_keys if split + 1 < splits[tile] else tiles[tile, 3]
            items[item, 5] = tiles[tile, 4]
            items[item, 6] = partial_row + split * tiles[tile, 2] if several else -1
            items[item, 7] = tiles[tile, 2] <= few_tokens
            item += 1
        partial_row += splits[tile] * tiles[tile, 2] if several else 0
    return item


@compiled
def _longest_first(items: Fields, count: int) -> bool:
    """Whether of the first `count` items no one has more keys than the one before."""
    in_order = True
    for item in range(1, count):
        in_order &= items[item, 4] - items[item, 3] <= items[item - 1, 4] - items[item - 1, 3]
    return in_order


@compiled
def _fill_merges(merges: Fields, tiles: Numbers, splits: Numbers) -> None:
    """The rows whose partial results are to be merged: those of split tiles; zeros after them."""
    merge = partial_row = 0
    for tile in range(len(tiles)):
        if splits[tile] == 1:
            continue
        for row in range(tiles[tile, 2]):
            merges[merge, 0] = tiles[tile, 1] + row
            merges[merge, 1] = partial_row + row
            merges[merge, 2] = tiles[tile, 2]
            merges[merge, 3] = splits[tile]
            merge += 1
        partial_row += splits[tile] * tiles[tile, 2]
    merges[merge:] = 0


@compiled
def cut(
    starts: Numbers,
    rows: Numbers,
    causal: Numbers,
    tile_tokens: int,
    page_size: int,
    fixed_keys: int,
    heads_per_kv_head: int,
    kv_heads: int,
    places: int,
    least_split: int,
    start_keys: int,
) -> tuple[Numbers, Numbers, int, int, int, int, int]:
    """Tiles, splits of each and their keys (`fixed_keys`, or chosen where those are 0); then what the arrays need:
    items and merges without padding, pages, and rows of partial results."""
    tiles = tiles_of(starts, rows, causal, tile_tokens)
    keys = fixed_keys
    if fixed_keys == 0:
        keys = chosen_split(tiles, heads_per_kv_head, kv_heads, places, least_split, start_keys)
    splits = splits_of(tiles, keys, fixed_keys > 0)
    items, merges, partial_rows = needed(tiles, splits)
    pages = 0
    for segment in range(len(rows)):
        pages += -(-(starts[segment] + rows[segment]) // page_size)
    return tiles, splits, keys, items, merges, pages, partial_rows


@compiled
def fill_work(
    reach: Fields,
    items: Fields,
    merges: Fields,
    table: Fields,
    tiles: Numbers,
    splits: Numbers,
    split_keys: int,
    tile_tokens: int,
    few_tokens: int,
    pages: Numbers,
    page_counts: Numbers,
    ends: Numbers,
    page_size: int,
) -> bool:
    """Fills the arrays of `ReachWork`, at least as long as `needed`, whatever is in them; items tile after tile. Behind
    the pages that are held `table` stays as it is.

    Args:
        tile_tokens, few_tokens: rows of a tile, and those that fit the small one.
        pages, page_counts: the sequences' pages, so many of each. ends: positions of each sequence, which its pages in
            `table` cover.

    Returns whether the items are in order, the longest first.
    """
    used = _fill_reach(reach, tiles)
    reach[used:] = 0
    first_page = _fill_pages(table, pages, page_counts, ends, page_size)
    count = _fill_items(items, tiles, splits, split_keys, first_page, few_tokens)
    in_order = _longest_first(items, count)
    items[count:] = 0
    # Rows of padding see nothing: their items write zeros.
    for row in range(used, len(reach), tile_tokens):
        items[count, 1] = row
        items[count, 2] = min(tile_tokens, len(reach) - row)
        items[count, 6] = -1
        count += 1
    _fill_merges(merges, tiles, splits)
    return in_order
