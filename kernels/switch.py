"""Which form of a kernel runs: Triton or plain PyTorch. One place for all kernels."""

from __future__ import annotations

import os

from torch import Tensor

VARIABLE = "STEPDIAL_KERNELS"
CHOICES = ("auto", "triton", "torch")


def use_triton(tensor: Tensor) -> bool:
    """Whether kernels on `tensor`'s device run in Triton.

    The environment variable STEPDIAL_KERNELS decides: `auto` (default) takes Triton for CUDA tensors and PyTorch for
    others, `triton` and `torch` force one; Triton on a CPU needs its interpreter (TRITON_INTERPRET=1).

    Raises ValueError for another value of the variable.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}; allowed: {', '.join(CHOICES)}")
    return tensor.is_cuda if choice == "auto" else choice == "triton"
