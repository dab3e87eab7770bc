"""A row's attention has the same bits however many keys follow its own: what padding the keys is for."""

import numpy as np
import pytest
import torch

import kernels.attention
from kernels.attention import (
    AttentionGroup,
    folding,
    key_blocks,
    padded_keys,
    possible_key_blocks,
    reach_attention,
    reach_mask,
)

ENDS = (1, 31, 33, 100, 150, 190, 193, 205, 257, 260, 300, 350, 381, 390, 450, 511, 512, 513, 521, 700, 900, 1100)


@pytest.fixture(params=[None, 256])
def whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Keys of a block: as found here, and cut smaller, so that blocks are joined on every CPU."""
    if request.param is not None:
        blocks = next(blocks for blocks in possible_key_blocks() if blocks.whole == request.param)
        monkeypatch.setattr(kernels.attention, "key_blocks", lambda: blocks)
    return kernels.attention.key_blocks().whole


@pytest.mark.parametrize(("rows", "dim"), [(1, 32), (5, 128), (88, 16)])
def test_a_row_has_the_same_bits_whatever_follows_it(rows: int, dim: int, whole: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    query, kv = (
        torch.randn(*shape, dim, generator=generator, dtype=torch.float32) for shape in ((rows, 10), (2048, 2, 2))
    )

    def attended(reach: int, end: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        """Six query heads on two K/V heads; the rows' reach is `reach`, the group's longest sequence has `end` keys."""
        count = padded_keys(end)
        fold = folding(1, rows, 2, 3, 10)
        mask = reach_mask(np.full((1, 1, len(fold.into) // 2), reach), count, kind)
        group = AttentionGroup(0, 1, rows, fold, torch.arange(count), mask)
        return reach_attention(query.to(kind), kv.to(kind), [group], dim**-0.5)

    for reach in ENDS:
        alone = attended(reach, reach)
        torch.testing.assert_close(alone, attended(reach, reach, torch.float64).float(), atol=1e-5, rtol=1e-4)
        assert all(torch.equal(attended(reach, end), alone) for end in ENDS if end > reach)


def test_keys_are_padded_to_the_next_safe_number() -> None:
    blocks = key_blocks()
    assert blocks.safe[-1] == blocks.whole
    assert padded_keys(0) == 0
    for reach in range(1, 3 * blocks.whole):
        whole, rest = divmod(padded_keys(reach), blocks.whole)
        assert 0 <= padded_keys(reach) - reach < blocks.whole
        assert rest == 0 or rest in blocks.safe
        assert whole - reach // blocks.whole in (0, 1)
