"""What the head is asked about a forward's rows, as bytes in which it reaches all ranks without pickling."""

from __future__ import annotations

import torch

from engine.decoding.head import Asked
from engine.packing import pack, unpack
from engine.sampling import RandomRows
from kernels.row_statistics import RowNoise, RowRules

HEADER = 5
"""Numbers before the tensors: mask id, rows, banned ids of a row, whether noise is drawn, filtered rows (-1 = none)."""


def encode_asked(asked: Asked) -> memoryview:
    """A header and the tensors of `asked`, which are on the CPU, one after the other."""
    rules, filtered = asked.rules, asked.filtered
    rows, banned = rules.banned.shape
    filtered_rows = -1 if filtered is None else len(filtered.rows)
    header = torch.tensor([rules.mask_id, rows, banned, rules.noise is not None, filtered_rows])
    return pack([header, *asked.tensors()]).numpy().data


def decode_asked(payload: bytearray) -> Asked:
    """What `encode_asked` made the bytes of."""
    buffer = torch.frombuffer(payload, dtype=torch.uint8)
    header = torch.empty(HEADER, dtype=torch.int64)
    mask_id, rows, banned, noisy, filtered = unpack(buffer, [header])[0].tolist()
    like = _empty(mask_id, rows, banned, bool(noisy), filtered)
    return like.with_tensors(unpack(buffer, [header, *like.tensors()])[1:])


def _empty(mask_id: int, rows: int, banned: int, noisy: bool, filtered: int) -> Asked:
    """The same with tensors of the right types and shapes."""
    rules = RowRules(mask_id, torch.empty(rows, banned, dtype=torch.int64), torch.empty(rows, dtype=torch.int64))
    if noisy:
        rules.noise = RowNoise(*(torch.empty(rows, dtype=kind) for kind in RowNoise.dtypes()))
    if filtered < 0:
        return Asked(rules, None)
    return Asked(rules, RandomRows(*(torch.empty(filtered, dtype=kind) for kind in RandomRows.dtypes())))
