"""Counter-based noise: a pure function of seed, choice, position, stage, step and token id (`requests.md` section 3).

Philox-4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), for the CPU here and as
`tl.philox` in kernels: the same words, and Gumbel noise that differs by the rounding of two logarithms at most. Batch,
block length and number of forwards never enter.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_LARGEST_UNIFORM = 1.0 - 2.0**-24
_COUNTERS_AT_ONCE = 1 << 14  # the buffers of a round stay in a core's own cache


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
    """Four random 32-bit words per counter.

    Args:
        counter, key: int64 tensors, or NumPy arrays, of 32-bit words (0 to 2**32 - 1) that broadcast with each other.

    Returns four of 32-bit words in int64. A product of two words wraps there, but its 64 bits are right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((odd >> 32) ^ c1 ^ k0) & _WORD
        c2 = ((even >> 32) ^ c3 ^ k1) & _WORD
        c1, c3 = odd & _WORD, even & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def gumbel_noise(
    seeds: Tensor, positions: Tensor, stages: Tensor, steps: Tensor, choices: Tensor, vocab_size: int, first_id: int = 0
) -> Tensor:
    """Standard Gumbel noise `[rows, vocab_size]` float32; a row depends on its own five numbers only.

    Counter (token id >> 2, position, stage | step << 8, choice), key the seed's 64 bits, word token id & 3 of the
    four. argmax(logits / T + noise) is then a sample of softmax(logits / T) (Gumbel-max).

    Args:
        seeds: int64 `[rows]` from `seed_bits`.
        positions: int64 `[rows]`, the absolute position of the token that is chosen.
        stages, steps: int64 `[rows]`, what is chosen (`engine/noise.py`, Stage); step < 2**24 within a block.
        choices: int64 `[rows]`, which of a request's `n` answers.
        first_id: the first of the `vocab_size` consecutive token ids.
    """
    skipped = first_id & 3
    groups = -(-(vocab_size + skipped) // 4)
    rows = seeds.shape[0]
    noise = torch.empty(rows, groups, 4, dtype=torch.float32, device=seeds.device)
    rows_at_once = max(1, _COUNTERS_AT_ONCE // groups)
    columns = _columns(seeds, positions, stages, steps, choices)[..., None]
    ids = torch.arange(first_id // 4, first_id // 4 + groups, device=seeds.device)
    for first in range(0, rows, rows_at_once):
        part = slice(first, first + rows_at_once)
        noise[part] = _words(columns[:, part], ids)
    return _gumbel(noise).view(rows, 4 * groups)[:, skipped : skipped + vocab_size]


def gumbel_noise_at(
    seeds: Tensor, positions: Tensor, stages: Tensor, steps: Tensor, choices: Tensor, token_ids: Tensor
) -> Tensor:
    """The entries of `gumbel_noise` for single tokens: `[tokens]` float32; all arguments are int64 `[tokens]`."""
    words = _words(_columns(seeds, positions, stages, steps, choices), token_ids >> 2)
    return _gumbel(words.gather(1, (token_ids & 3)[:, None])[:, 0].float())


def _columns(seeds: Tensor, positions: Tensor, stages: Tensor, steps: Tensor, choices: Tensor) -> Tensor:
    return torch.stack((seeds & _WORD, (seeds >> 32) & _WORD, positions, stages | (steps << 8), choices))


def _words(columns: Tensor, ids: Tensor) -> Tensor:
    """The four words of each counter in a new last dimension."""
    if columns.device.type == "cpu":
        # NumPy's integer operations start several times faster than torch's, which is what one row costs.
        low, high, position, where, choice = columns.numpy()
        return torch.from_numpy(np.stack(philox((ids.numpy(), position, where, choice), (low, high)), axis=-1))
    low, high, position, where, choice = columns
    return torch.stack(philox((ids, position, where, choice), (low, high)), dim=-1)


def _gumbel(words: Tensor) -> Tensor:
    """Gumbel noise from float32 values of random words, in place.

    The exponential -log(1 - u) is finest where it is small, and it is the small ones that win: unlikely tokens keep
    their probability down to 2**-33.
    """
    uniform = words.mul_(2.0**-32).add_(2.0**-33).clamp_(max=_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_().log_().neg_()


@triton.jit  # type: ignore[untyped-decorator]
def gumbel_tile(seeds, positions, places, choices, first_id, rows: tl.constexpr, ids: tl.constexpr):  # type: ignore[no-untyped-def]
    """`gumbel_noise` for `ids` consecutive token ids from `first_id` (both multiples of 4): float32 `[ids, rows]`.

    Args:
        seeds: int64 `[rows]`. positions, places (stage | step << 8), choices: int32 `[rows]`.
    """
    groups = (first_id // 4 + tl.arange(0, ids // 4))[:, None] + tl.zeros([1, rows], tl.int32)
    w0, w1, w2, w3 = tl.philox(seeds[None, :], groups, positions[None, :], places[None, :], choices[None, :])
    # Joining puts a new dimension last; the four words of a group belong to consecutive ids.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [groups, rows, 2, 2], last two: word // 2, word % 2
    words = tl.reshape(tl.permute(words, (0, 2, 3, 1)), [ids, rows])
    uniform = tl.minimum(words.to(tl.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)
    # log1p: log(1 - u) is off by the rounding of 1 - u, and so is 1 - u - 1, in proportion.
    rest = 1.0 - uniform
    exponential = tl.where(rest == 1.0, uniform, tl.log(rest) * uniform / tl.where(rest == 1.0, -1.0, rest - 1.0))
    return -tl.log(exponential)
