"""Tensors that travel together arrive as they were."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.packing import fetched, joined, moved, pack, parted, size_of, unpack

TYPES = (torch.int64, torch.float32, torch.bfloat16, torch.bool, torch.int32)


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    """Of several types and shapes, empty ones and views of others among them."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        shape = draw(st.sampled_from([(0,), (1,), (3,), (2, 5), (4, 0), (7, 1)]))
        values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(len(made)))
        made.append(values.to(draw(st.sampled_from(TYPES))))
        if len(shape) == 2 and draw(st.booleans()):
            made[-1] = made[-1].t()
    return made


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(tensors())
def test_packed_is_unpacked_at_addresses_that_any_load_takes(made: list[Tensor]) -> None:
    buffer = pack(made)
    assert len(buffer) == size_of([(tensor.shape, tensor.dtype) for tensor in made])
    again = unpack(buffer, made)
    assert same(again, made)
    assert all(tensor.storage_offset() * tensor.element_size() % 16 == 0 for tensor in again)


@given(tensors())
def test_joined_is_parted(made: list[Tensor]) -> None:
    buffer = joined(made)
    assert len(buffer) == sum(tensor.numel() * tensor.element_size() for tensor in made)
    assert same(parted(buffer, made), made)


@given(tensors())
def test_on_a_cpu_nothing_is_copied(made: list[Tensor]) -> None:
    for there in (moved(made, torch.device("cpu")), fetched(made)):
        assert all(one is other for one, other in zip(there, made, strict=True))
