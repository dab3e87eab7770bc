"""Many small tensors as one buffer of bytes, so that they travel to a device, or back, in one copy."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""
_ALIGNMENT = 16
"""Bytes at which every tensor of a buffer begins: what a 128-bit load needs."""


def pack(tensors: Seq[Tensor], pinned: bool = False) -> Tensor:
    """The bytes of CPU tensors one after the other, uint8, each from a multiple of 16 on."""
    parts = [_raw(tensor) for tensor in tensors]
    buffer = torch.empty(sum(_aligned(part.size) for part in parts), dtype=torch.uint8, pin_memory=pinned)
    # By NumPy, which does it in half of torch's time: between two forwards a device waits for this.
    there, at = buffer.numpy(), 0
    for part in parts:
        there[at : at + part.size] = part
        at = _aligned(at + part.size)
    return buffer


def unpack(buffer: Tensor, like: Seq[Tensor]) -> list[Tensor]:
    """Views into a buffer of `pack`, with the types and shapes of the tensors that were packed."""
    return tensors_in(buffer, [(tensor.shape, tensor.dtype) for tensor in like])


def tensors_in(buffer: Tensor, forms: Seq[Form]) -> list[Tensor]:
    """Views into a buffer, laid out as by `pack`, of these shapes and types."""
    sizes = [size for each in map(_bytes, forms) for size in (each, _aligned(each) - each)]
    parts = buffer[: sum(sizes)].split_with_sizes(sizes)[::2]
    return [
        part.view(dtype) if len(shape) == 1 else part.view(dtype).view(shape)
        for part, (shape, dtype) in zip(parts, forms, strict=True)
    ]


def size_of(forms: Seq[Form]) -> int:
    """Bytes of a buffer for tensors of these shapes and types."""
    return sum(_aligned(_bytes(form)) for form in forms)


def moved(tensors: Seq[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on `device`, by one copy that the host does not wait for."""
    if device.type == "cpu":
        return list(tensors)
    return unpack(pack(tensors, pinned=True).to(device, non_blocking=True), tensors)


def fetched(tensors: Seq[Tensor]) -> list[Tensor]:
    """Tensors of one device in the host's memory, by one copy that the host waits for."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    there = joined(tensors)
    here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=True)
    here.copy_(there, non_blocking=True)
    # Taken apart before it has arrived: the device would wait for what the host does after that.
    parts = parted(here, tensors)
    torch.cuda.current_stream(there.device).synchronize()
    return parts


def fetched_together(*groups: Seq[Tensor]) -> list[list[Tensor]]:
    """`fetched` of all groups, for which the host waits once."""
    rest = iter(fetched([tensor for group in groups for tensor in group]))
    return [[next(rest) for _ in group] for group in groups]


def joined(tensors: Seq[Tensor]) -> Tensor:
    """The bytes of tensors on their device, uint8, those of the widest type first: each begins where its type may."""
    return torch.cat([tensors[place].contiguous().view(-1).view(torch.uint8) for place in _by_width(tensors)])


def parted(buffer: Tensor, like: Seq[Tensor]) -> list[Tensor]:
    """Views into a buffer of `joined`, with the types and shapes of the tensors that were joined."""
    found: dict[int, Tensor] = {}
    at = 0
    for place in _by_width(like):
        tensor = like[place]
        size = tensor.numel() * tensor.element_size()
        found[place] = buffer[at : at + size].view(tensor.dtype).view(tensor.shape)
        at += size
    return [found[place] for place in range(len(like))]


def _by_width(tensors: Seq[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())


def _raw(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a CPU tensor, in one row."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().reshape(-1).view(np.uint8)


def _bytes(form: Form) -> int:
    shape, dtype = form
    return prod(shape) * dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
