"""Where noise comes from: a seed's bits and the stage of a choice (`requests.md` section 3; `kernels/noise.py`)."""

from __future__ import annotations

from enum import IntEnum


class Stage(IntEnum):
    """What a token is chosen for: a seed, an AR token or a verify (causal), a draft, or a denoise step."""

    CAUSAL = 0
    DRAFT = 1
    DENOISE = 2


def seed_bits(seed: int) -> int:
    """`seed` (-2**63 to 2**64 - 1) as the int64 with the same 64 bits, for a tensor of seeds."""
    bits = seed % 2**64
    return bits - 2**64 if bits >= 2**63 else bits
