"""What the head is asked comes back from its bytes as it was, for any number of rows, sampled or not."""

from __future__ import annotations

from dataclasses import fields

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.decoding.head import Asked
from engine.group.flat_asked import decode_asked, encode_asked
from engine.sampling import RandomRows
from kernels.row_statistics import RowNoise, RowRules


def drawn(draw: torch.Generator, kind: torch.dtype, *shape: int) -> Tensor:
    if kind is torch.bool:
        return torch.rand(*shape, generator=draw) < 0.5
    if kind.is_floating_point:
        return torch.rand(*shape, generator=draw)
    info = torch.iinfo(kind)
    return torch.randint(info.min, info.max, shape, dtype=kind, generator=draw)


def tensors(asked: Asked) -> dict[str, Tensor]:
    parts = {"rules": asked.rules, "noise": asked.rules.noise, "filtered": asked.filtered}
    return {
        f"{name}.{one.name}": getattr(part, one.name)
        for name, part in parts.items()
        if part is not None
        for one in fields(part)
        if isinstance(getattr(part, one.name), Tensor)
    }


@given(st.integers(0, 40), st.integers(0, 3), st.none() | st.integers(0, 9), st.booleans(), st.integers(0, 2**31))
def test_it_comes_back_from_its_flat_form(rows: int, banned: int, filtered: int | None, noisy: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rules = RowRules(seed, drawn(draw, torch.int64, rows, banned), drawn(draw, torch.int64, rows))
    if noisy:
        rules.noise = RowNoise(*(drawn(draw, kind, rows) for kind in RowNoise.dtypes()))
    some = None if filtered is None else RandomRows(*(drawn(draw, kind, filtered) for kind in RandomRows.dtypes()))
    asked = Asked(rules, some)
    again = decode_asked(bytearray(encode_asked(asked)))
    assert again.rules.mask_id == seed
    want, got = tensors(asked), tensors(again)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert got[name].dtype is tensor.dtype, name
        assert torch.equal(got[name], tensor), name
