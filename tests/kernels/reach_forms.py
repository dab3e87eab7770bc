"""Forms of reach attention, compiled by `aot.py`: the engine's tiles with the heads of the released checkpoints, whole
and sharded over eight ranks."""

from __future__ import annotations

import torch

from kernels.reach_attention import _MERGED_AT_ONCE, MOST_REGISTERS, _attention_kernel, _merge_kernel
from kernels.reach_work import FEW_ROWS, tiles_for
from tests.kernels.aot import Form
from tests.kernels.layer_forms import OVERLAPPING

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _attention(kind: str, kv_heads: int, partials: str = "fp16", overlaps: bool = False) -> Form:
    tiles = tiles_for(DTYPES[kind])
    return Form(
        f"reach_attention/{kind}/{kv_heads}_kv_heads/{partials}_partials{OVERLAPPING * overlaps}",
        _attention_kernel,
        {
            "query_ptr": f"*{kind}",
            "kv_ptr": f"*{kind}",
            "items_ptr": "*i32",
            "pages_ptr": "*i32",
            "reach_ptr": "*i32",
            "out_ptr": f"*{kind}",
            "partial_ptr": f"*{partials}",
            "peak_ptr": "*fp32",
            "total_ptr": "*fp32",
            "stretch_ptr": "*fp32",
            "query_stride": "i32",
            "scale": "fp32",
        },
        {
            "KV_HEADS": kv_heads,
            "GROUP": 4,
            "DIM": 128,
            "PAGE": 32,
            "ROWS": tiles.rows,
            "FEW": FEW_ROWS,
            "KEYS": tiles.keys,
            "OVERLAPS": overlaps,
        },
        tiles.warps,
        tiles.stages,
        ("query_stride",),
        MOST_REGISTERS,
    )


def _merge(kind: str, partials: str = "fp16", overlaps: bool = False) -> Form:
    return Form(
        f"reach_merge/{kind}/{partials}_partials{OVERLAPPING * overlaps}",
        _merge_kernel,
        {
            "partial_ptr": f"*{partials}",
            "peak_ptr": "*fp32",
            "total_ptr": "*fp32",
            "stretch_ptr": "*fp32",
            "merges_ptr": "*i32",
            "out_ptr": f"*{kind}",
        },
        {"HEADS": 32, "DIM": 128, "SPLITS": _MERGED_AT_ONCE, "OVERLAPS": overlaps},
    )


FORMS = [
    *(_attention(kind, 8) for kind in ("bf16", "fp16")),
    *(_attention(kind, 8, "fp32") for kind in ("bf16", "fp32")),
    _attention("bf16", 1),
    *(_merge(kind) for kind in ("bf16", "fp16")),
    _merge("bf16", "fp32"),
    _attention("bf16", 8, overlaps=True),
    _merge("bf16", overlaps=True),
]
