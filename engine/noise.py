"""Counter-based noise: a pure function of seed, choice, position, stage, step and token id (`requests.md` section 3).

Philox-4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator of `tl.philox`, so
that a kernel can draw the same words. Batch, block length and number of forwards never enter.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_LARGEST_UNIFORM = 1.0 - 2.0**-24
_COUNTERS_AT_ONCE = 1 << 14  # the buffers of a round stay in a core's own cache


class Stage(IntEnum):
    """What a token is chosen for: a seed, an AR token or a verify (causal), a draft, or a denoise step."""

    CAUSAL = 0
    DRAFT = 1
    DENOISE = 2


def seed_bits(seed: int) -> int:
    """`seed` (-2**63 to 2**64 - 1) as the int64 with the same 64 bits, for a tensor of seeds."""
    bits = seed % 2**64
    return bits - 2**64 if bits >= 2**63 else bits


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
    seeds: Tensor, positions: Tensor, stages: Tensor, steps: Tensor, choices: Tensor, vocab_size: int
) -> Tensor:
    """Standard Gumbel noise `[rows, vocab_size]` float32; a row depends on its own five numbers only.

    Counter (token id >> 2, position, stage | step << 8, choice), key the seed's 64 bits, word token id & 3 of the
    four. argmax(logits / T + noise) is then a sample of softmax(logits / T) (Gumbel-max).

    Args:
        seeds: int64 `[rows]` from `seed_bits`.
        positions: int64 `[rows]`, the absolute position of the token that is chosen.
        stages, steps: int64 `[rows]`, see `Stage`; step < 2**24 within a block.
        choices: int64 `[rows]`, which of a request's `n` answers.
    """
    groups = -(-vocab_size // 4)
    rows = seeds.shape[0]
    noise = torch.empty(rows, groups, 4, dtype=torch.float32, device=seeds.device)
    rows_at_once = max(1, _COUNTERS_AT_ONCE // groups)
    columns = _columns(seeds, positions, stages, steps, choices)[..., None]
    ids = torch.arange(groups, device=seeds.device)
    for first in range(0, rows, rows_at_once):
        part = slice(first, first + rows_at_once)
        noise[part] = _words(columns[:, part], ids)
    return _gumbel(noise).view(rows, 4 * groups)[:, :vocab_size]


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
