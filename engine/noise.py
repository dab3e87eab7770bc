"""Counter-based noise: a pure function of seed, choice, position, stage, step and token id (`requests.md` section 3).

Philox-4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator of `tl.philox`, so
that a kernel can draw the same words. Batch, block length and number of forwards never enter.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_LARGEST_UNIFORM = 1.0 - 2.0**-24


class Stage(IntEnum):
    """What a token is chosen for: a seed, an AR token or a verify (causal), a draft, or a denoise step."""

    CAUSAL = 0
    DRAFT = 1
    DENOISE = 2


def seed_bits(seed: int) -> int:
    """`seed` (-2**63 to 2**64 - 1) as the int64 with the same 64 bits, for a tensor of seeds."""
    bits = seed % 2**64
    return bits - 2**64 if bits >= 2**63 else bits


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words per counter.

    Args:
        counter, key: int64 tensors of 32-bit words (0 to 2**32 - 1) that broadcast with each other.

    Returns four int64 tensors of 32-bit words. A product of two words wraps in int64, but its 64 bits are right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (odd >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_WORD) if odd.shape >= c1.shape else (
            (odd >> 32) ^ c1 ^ k0
        ) & _WORD
        c2 = ((even >> 32) ^ c3 ^ k1) & _WORD
        c1, c3 = odd.bitwise_and_(_WORD), even.bitwise_and_(_WORD)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3
