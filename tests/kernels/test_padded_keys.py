"""A row's attention has the same bits however many keys follow its own: what padding the keys is for."""

import pytest
import torch
import torch.nn.functional as F

from kernels.attention import BLOCK_KEYS, padded_keys, reach_mask, safe_key_counts

ENDS = (1, 31, 33, 100, 150, 190, 193, 205, 257, 260, 300, 350, 381, 390, 450, 511, 512, 513, 521, 700, 900, 1100)


@pytest.mark.parametrize(("heads", "rows", "dim"), [(2, 8, 32), (1, 40, 128), (4, 264, 16)])
def test_a_row_has_the_same_bits_whatever_follows_it(heads: int, rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    query, keys, values = (torch.randn(1, heads, count, dim, generator=generator) for count in (rows, 2048, 2048))

    def attended(reach: int, end: int) -> torch.Tensor:
        count = padded_keys(end)
        mask = reach_mask(torch.full((1, 1, rows), reach), count, query.dtype)
        return F.scaled_dot_product_attention(query, keys[:, :, :count], values[:, :, :count], attn_mask=mask)

    for reach in ENDS:
        alone = attended(reach, reach)
        assert all(torch.equal(attended(reach, end), alone) for end in ENDS if end > reach)


def test_keys_are_padded_to_the_next_safe_number() -> None:
    safe = safe_key_counts()
    assert safe[-1] == BLOCK_KEYS
    assert padded_keys(0) == 0
    for reach in range(1, 3 * BLOCK_KEYS):
        blocks, rest = divmod(padded_keys(reach), BLOCK_KEYS)
        assert padded_keys(reach) >= reach
        assert rest == 0 or rest in safe
        assert padded_keys(reach) - reach < BLOCK_KEYS
        assert blocks - reach // BLOCK_KEYS in (0, 1)
