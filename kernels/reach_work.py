"""The work list of reach attention: what each program of the one launch does, built on the host with the batch.

A *row tile* is up to `Tiles.rows` product rows of one sequence: its query tokens, each with all heads of one K/V head.
A tile's keys are cut into *splits*; one *item* of the list is one tile and one split, and each is run once per K/V
head. A tile with several splits leaves one partial result per split, which are *merged* row by row; a tile with one
writes its answer at once. Everything has a size that is known on the host, so nothing waits for the device, and the
arrays can be padded to the sizes of a bucket for a CUDA graph: a padded item or merge does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

ITEM_FIELDS = 8
"""int32 fields of an item: page_start, first_row, rows, first_key, key_end, least_reach, partial_row, few."""

MERGE_FIELDS = 4
"""int32 fields of a merge: row, partial_row, step, splits."""

FEW_ROWS = 16
"""Product rows of the small tile: the least that a tensor-core product takes. One AR token with its heads fits."""


PLACES = 264
"""Programs that run at once on an H100 or H200: two on each of 132 processors."""

LEAST_SPLIT = 128
"""Keys of the shortest split that is chosen for a batch."""

_START_KEYS = 64
"""What a program costs before its first product and after its last, in keys: a guess until it is measured."""

_PARTIAL_STEP = 256
"""Rows of partial results are allocated in multiples of this, so that there are few different sizes."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile sizes of the attention kernel for one type of K/V.

    Attributes:
        rows: product rows (query tokens x heads of a K/V head) of a tile, a power of two. 128 is a canvas of 32 tokens
            with 4 heads a K/V head.
        keys: keys of one step of the loop, a power of two.
        warps, stages: launch options; stages is how many steps' loads are under way or in use.
    """

    rows: int
    keys: int
    warps: int
    stages: int


def tiles_for(dtype: torch.dtype) -> Tiles:
    """Tile sizes for K/V of `dtype`; constants, so that they cannot depend on the batch.

    Sixteen bits: a canvas is one tile, a step is one page, and a program with its buffers leaves room for a second one
    on the SM (`kernels/reach_attention.py` says why). float32 has no exact tensor-core product and is for comparisons.
    """
    return Tiles(16, 32, 8, 1) if dtype is torch.float32 else Tiles(128, 32, 8, 4)


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How the tiles' keys are cut.

    Attributes:
        keys: keys of a split, a multiple of the tile's keys; a tile's first split begins at key 0 and every further one
            at a multiple. None: chosen for each batch (`reach_work_arithmetic.py`), and a rest of less than half a
            split belongs to the one before it.
        small_tiles: whether a tile of few rows may be a small one.

    With `keys` and without small tiles (`FIXED`) a row's answer depends on its own query, keys and reach alone: not on
    other sequences, nor on how a prompt is cut into chunks. The cost: a canvas's split leaves 64 KB a K/V head, written
    and read again, where its K and V are 256 KB (in float16 it would be half, but a tile that is not split rounds no
    sums); and single tokens pay the products of a whole tile.
    """

    keys: int | None = None
    small_tiles: bool = True

    @property
    def fixed(self) -> bool:
        """Whether a row's answer depends on nothing else in its batch."""
        return self.keys is not None and not self.small_tiles


FIXED = SplitRule(512, small_tiles=False)
"""Answers that do not depend on the batch."""


@dataclass(frozen=True, slots=True)
class WorkSizes:
    """Sizes of a bucket: the arrays of every batch in it are padded to these, so that one CUDA graph serves them all.

    Attributes:
        items, merges, pages, partial_rows: see `ReachWork`.
    """

    items: int
    merges: int
    pages: int
    partial_rows: int

    def has_room_for(self, needed: WorkSizes) -> bool:
        """Whether a batch that needs so much fits."""
        return all(getattr(needed, one.name) <= getattr(self, one.name) for one in fields(self))


@dataclass(slots=True)
class ReachWork:
    """Reach attention's view of a batch. All tensors int32, on one device.

    Attributes:
        reach: `[tokens]`, keys that each row sees; 0 for padding rows.
        items: `[items, ITEM_FIELDS]`, see there: where the sequence's pages start in `pages`; the tile's first row and
            number of rows (0: nothing to do); its keys `[first_key, key_end)`; the least reach in the tile; the first
            of its rows in the partial results, or -1 to write the answer; whether it takes the small tile.
        merges: `[merges, MERGE_FIELDS]`: a row, its first partial row, the distance from split to split, their number.
        pages: `[any]`, the sequences' page numbers, sequence after sequence; covers every item's keys. What is behind
            the last one is read by nobody.
        partial_rows: rows of partial results that the launch needs, of all heads each.
        page_size: slots of a page.
        tiles: the tile sizes that the items were cut for.
        exact: whether partial results are float32, so that a row's bits do not depend on whether its tile is split.
    """

    reach: Tensor
    items: Tensor
    merges: Tensor
    pages: Tensor
    partial_rows: int
    page_size: int
    tiles: Tiles
    exact: bool

    @property
    def sizes(self) -> WorkSizes:
        """Of the arrays, padding included."""
        return WorkSizes(self.items.shape[0], self.merges.shape[0], self.pages.shape[0], self.partial_rows)

    def arrays(self) -> tuple[Tensor, ...]:
        """The tensors, for moving them together."""
        return self.reach, self.items, self.merges, self.pages

    def with_arrays(self, arrays: tuple[Tensor, ...]) -> ReachWork:
        """The same work with its tensors elsewhere, in the order of `arrays`."""
        reach, items, merges, pages = arrays
        return ReachWork(reach, items, merges, pages, self.partial_rows, self.page_size, self.tiles, self.exact)


def rounded_up(count: int) -> int:
    """The bucket of a size: the next power of two or one and a half times one (16, 24, 32, 48, 64, ...), 0 for 0."""
    if count == 0:
        return 0
    power = 1 << max(count - 1, 15).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power > 16 else power


@dataclass(frozen=True, slots=True)
class ReachShape:
    """What is the same for all batches of a model.

    Attributes:
        heads_per_kv_head, kv_heads: of this rank; a program for each K/V head of an item. page_size: slots of a page.
        tiles: for the type of K/V. rule: how contexts are split.
    """

    heads_per_kv_head: int
    kv_heads: int
    page_size: int
    tiles: Tiles
    rule: SplitRule

    def __post_init__(self) -> None:
        """Raises ValueError if a K/V head has more heads than a tile has rows, or splits do not consist of tiles."""
        if self.tile_tokens == 0:
            raise ValueError(f"{self.heads_per_kv_head} heads a K/V head do not fit a tile of {self.tiles.rows} rows")
        keys = self.rule.keys
        if keys is not None and (keys <= 0 or keys % self.tiles.keys):
            raise ValueError(f"split of {keys} keys; allowed: multiples of {self.tiles.keys}")

    @property
    def tile_tokens(self) -> int:
        """Query rows of a tile."""
        return self.tiles.rows // self.heads_per_kv_head

    @property
    def few_tokens(self) -> int:
        """Query rows that fit the small tile; none where the rule has no such tile."""
        return FEW_ROWS // self.heads_per_kv_head if self.rule.small_tiles else 0


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A batch cut into tiles and splits; its work list's arrays are still to be filled.

    Attributes:
        tiles, splits: int64, see `reach_work_arithmetic.py`. keys: of a split. items: without those of padding.
        sizes: of the arrays, for batches of `tokens` rows. held: of `sizes.pages`, those that are known.
    """

    shape: ReachShape
    tiles: np.ndarray
    splits: np.ndarray
    keys: int
    items: int
    tokens: int
    sizes: WorkSizes
    held: int

    def array_shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays, int32, in the order of `ReachWork.arrays`."""
        sizes = self.sizes
        return [(self.tokens,), (sizes.items, ITEM_FIELDS), (sizes.merges, MERGE_FIELDS), (sizes.pages,)]

    def fill(self, arrays: Seq[np.ndarray], pages: np.ndarray, page_counts: np.ndarray, ends: np.ndarray) -> None:
        """Fills the arrays, whatever is in them, but for the pages behind those that are held.

        Args:
            pages, page_counts: see `reach_work`. ends: int64 `[segments]`, positions of each sequence by now.
        """
        from kernels.reach_work_arithmetic import fill_work

        reach, items, merges, table = arrays
        shape = self.shape
        if not fill_work(
            reach,
            items,
            merges,
            table,
            self.tiles,
            self.splits,
            self.keys,
            shape.tile_tokens,
            shape.few_tokens,
            pages,
            page_counts,
            ends,
            shape.page_size,
        ):
            # The longest first, so that short ones fill the gaps at the end.
            real = items[: self.items]
            real[:] = real[np.argsort(real[:, 3] - real[:, 4], kind="stable")]

    def work(self, arrays: Seq[Tensor]) -> ReachWork:
        """The work list in arrays that were filled."""
        reach, items, merges, pages = arrays
        shape = self.shape
        rows = self.sizes.partial_rows
        return ReachWork(reach, items, merges, pages, rows, shape.page_size, shape.tiles, shape.rule.fixed)


def cut_work(
    starts: np.ndarray,
    rows: np.ndarray,
    causal: np.ndarray,
    used: int,
    tokens: int,
    shape: ReachShape,
    buckets: Seq[WorkSizes] = (),
) -> Cut:
    """Cuts a batch's segments; see `reach_work`.

    Args:
        causal: int64 `[segments]`, 0 or 1. used: of the batch's `tokens`, those that are not padding.
    """
    # Here and not at import: only where the kernel runs is it needed.
    from kernels.reach_work_arithmetic import cut

    tiles, splits, keys, items, merges, held, partial_rows = cut(
        starts,
        rows,
        causal,
        shape.tile_tokens,
        shape.page_size,
        shape.rule.keys or 0,
        shape.heads_per_kv_head,
        shape.kv_heads,
        PLACES,
        LEAST_SPLIT,
        _START_KEYS,
    )
    padding = -(-(tokens - used) // shape.tile_tokens)
    least = WorkSizes(items + padding, merges, held, partial_rows)
    sizes = next((bucket for bucket in buckets if bucket.has_room_for(least)), None) or _rounded(least)
    return Cut(shape, tiles, splits, keys, items, tokens, sizes, held)


def reach_work(
    starts: np.ndarray,
    rows: np.ndarray,
    causal: np.ndarray,
    pages: np.ndarray,
    page_counts: np.ndarray,
    tokens: int,
    shape: ReachShape,
    buckets: Seq[WorkSizes] = (),
) -> ReachWork:
    """Cuts a batch's segments into items, longest first, on the CPU.

    Args:
        starts, rows: int64 `[segments]`, each segment's first position and number of query rows, at least one; their
            rows follow each other in the batch.
        causal: bool `[segments]`: the row at position p has reach p + 1; else every row has the segment's end.
        pages: int64, each sequence's page numbers in order, sequence after sequence. page_counts: int64 `[segments]`,
            so many of each, which cover its segment's end.
        tokens: rows of the batch, padding at the end included; padding rows see nothing and their answer is zero.
        buckets: sizes to pad to, the first that the batch fits; else they are rounded up, so that there are few
            different ones.
    """
    made = cut_work(starts, rows, causal.astype(np.int64), int(rows.sum()), tokens, shape, buckets)
    arrays = [np.zeros(of_array, dtype=np.int32) for of_array in made.array_shapes()]
    made.fill(arrays, pages, page_counts, starts + rows)
    return made.work([torch.from_numpy(array) for array in arrays])


def _rounded(needed: WorkSizes) -> WorkSizes:
    partial_rows = -(-needed.partial_rows // _PARTIAL_STEP) * _PARTIAL_STEP
    return WorkSizes(rounded_up(needed.items), rounded_up(needed.merges), rounded_up(needed.pages), partial_rows)
