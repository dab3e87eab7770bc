"""Forms of the small kernels of a layer, compiled by `aot.py`: the sizes of the released checkpoints."""

from __future__ import annotations

import triton

from kernels.activation import _LANES, _swiglu_kernel
from kernels.fixed_product import (
    STAGES,
    TILE_INPUTS,
    TILE_OUTPUTS,
    TILE_ROWS,
    WARPS,
    _fixed_product_kernel,
)
from kernels.narrow_product import AHEAD_INPUTS, _narrow_product_kernel, narrow_shape
from kernels.narrow_product import TILE_INPUTS as NARROW_INPUTS
from kernels.narrow_product import TILE_OUTPUTS as NARROW_OUTPUTS
from kernels.narrow_product import WARPS as NARROW_WARPS
from kernels.norm import _add_and_norm_kernel
from kernels.quantize import _SMALLEST_SCALE, LARGEST, MOST_LANES, _quantize_rows_kernel, warps
from kernels.rope_and_kv import _HEADS_AT_ONCE, _rope_and_kv_kernel
from tests.kernels.aot import Form

OVERLAPPING = "/overlapping"


def _rope(kind: str, overlaps: bool = False) -> Form:
    return Form(
        f"rope_and_kv/{kind}{OVERLAPPING * overlaps}",
        _rope_and_kv_kernel,
        {
            "projected_ptr": f"*{kind}",
            "cos_ptr": f"*{kind}",
            "sin_ptr": f"*{kind}",
            "query_scale_ptr": f"*{kind}",
            "slots_ptr": "*i64",
            "query_ptr": f"*{kind}",
            "kv_ptr": f"*{kind}",
        },
        {"HEADS": 32, "KV_HEADS": 8, "HALF": 64, "AT_ONCE": _HEADS_AT_ONCE, "OVERLAPS": overlaps},
    )


def _norm(kind: str, hidden: int, overlaps: bool = False) -> Form:
    lanes = triton.next_power_of_2(hidden)
    return Form(
        f"add_and_norm/{kind}/{hidden}{OVERLAPPING * overlaps}",
        _add_and_norm_kernel,
        {
            "x_ptr": f"*{kind}",
            "change_ptr": f"*{kind}",
            "weight_ptr": f"*{kind}",
            "total_ptr": f"*{kind}",
            "normed_ptr": f"*{kind}",
            "eps": "fp32",
        },
        {"HIDDEN": hidden, "LANES": lanes, "OVERLAPS": overlaps},
        warps=min(16, max(1, lanes // 512)),
    )


def _swiglu(kind: str, overlaps: bool = False) -> Form:
    return Form(
        f"swiglu/{kind}{OVERLAPPING * overlaps}",
        _swiglu_kernel,
        {"gate_up_ptr": f"*{kind}", "out_ptr": f"*{kind}"},
        {"INNER": 16384, "LANES": _LANES, "OVERLAPS": overlaps},
    )


def _quantize(kind: str, width: int) -> Form:
    lanes = min(triton.next_power_of_2(width), MOST_LANES)
    return Form(
        f"quantize_rows/{kind}/{width}",
        _quantize_rows_kernel,
        {"x_ptr": f"*{kind}", "values_ptr": "*fp8e4nv", "scales_ptr": "*fp32"},
        {"WIDTH": width, "LANES": lanes, "LARGEST": LARGEST, "SMALLEST": _SMALLEST_SCALE},
        warps=warps(lanes),
    )


def _fixed(kind: str) -> Form:
    return Form(
        f"fixed_product/{kind}",
        _fixed_product_kernel,
        {
            "weight": f"tensordesc<{kind}[{TILE_OUTPUTS}, {TILE_INPUTS}]>",
            "x": f"tensordesc<{kind}[{TILE_ROWS}, {TILE_INPUTS}]>",
            "out_ptr": f"*{kind}",
            "inputs": "i32",
            "outputs": "i32",
            "rows": "i32",
        },
        {"OUTPUTS": TILE_OUTPUTS, "ROWS": TILE_ROWS, "INPUTS": TILE_INPUTS},
        WARPS,
        STAGES,
        ("inputs", "outputs"),
    )


def _narrow(kind: str, rows: int, way: str, overlaps: bool = False) -> Form:
    _, stages = narrow_shape(rows)
    outputs = NARROW_OUTPUTS // 2 if way == "gated" else NARROW_OUTPUTS
    return Form(
        f"narrow_product/{kind}/{rows} rows/{way}{OVERLAPPING * overlaps}",
        _narrow_product_kernel,
        {
            "weight": f"tensordesc<{kind}[{outputs}, {NARROW_INPUTS}]>",
            "x": f"tensordesc<{kind}[{rows}, {NARROW_INPUTS}]>",
            "weight_ptr": f"*{kind}",
            "out_ptr": f"*{kind}",
            **({} if way == "gated" else {"sums_ptr": "*fp32", "arrivals_ptr": "*i32"}),
            "inputs": "i32",
            "outputs": "i32",
            "rows": "i32",
            "share": "i32",
        },
        {
            "OUTPUTS": outputs,
            "ROWS": rows,
            "INPUTS": NARROW_INPUTS,
            **({"sums_ptr": None, "arrivals_ptr": None} if way == "gated" else {}),
            "GATED": way == "gated",
            "SPLIT": way == "split",
            "AHEAD": AHEAD_INPUTS,
            "OVERLAPS": overlaps,
        },
        NARROW_WARPS,
        stages,
        ("inputs", "outputs", "share"),
    )


FORMS = [
    *(_rope(kind) for kind in ("bf16", "fp16")),
    *(_norm("bf16", hidden) for hidden in (3072, 4096, 5120)),
    _norm("fp16", 5120),
    *(_swiglu(kind) for kind in ("bf16", "fp16")),
    *(_fixed(kind) for kind in ("bf16", "fp16")),
    *(_narrow("bf16", rows, way) for rows in (16, 32, 64) for way in ("whole", "split", "gated")),
    *(_narrow("bf16", 32, way, overlaps=True) for way in ("whole", "split", "gated")),
    *(form("bf16", overlaps=True) for form in (_rope, _swiglu)),
    _norm("bf16", 5120, overlaps=True),
    *(_quantize("bf16", width) for width in (4096, 5120, 16_384)),
]
