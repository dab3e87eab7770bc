"""Forms of the denoise head, compiled by `aot.py`: what an H100 or H200 runs for a 14B model in bf16, and in fp16."""

from __future__ import annotations

from kernels.combine import _combine_kernel
from kernels.denoise_head import PIECE, TILE_HIDDEN, TILE_IDS, _fused_kernel, _pieces_kernel, fused_shape
from tests.kernels.aot import Form

RULES = {
    "mask_id": "i32",
    "banned_ptr": "*i64",
    "banned_count": "i32",
    "given_ptr": "*i64",
    "temperature_ptr": "*fp32",
    "seeds_ptr": "*i64",
    "positions_ptr": "*i32",
    "places_ptr": "*i32",
    "choices_ptr": "*i32",
}
FORMS = []
for dtype in ("bf16", "fp16"):
    for sampled in (False, True):
        kind = "sampled" if sampled else "greedy"
        for rows in (16, 32, 64):
            tile_rows, warps, stages, passes = fused_shape(rows, sampled)
            types = {
                "weight": f"tensordesc<{dtype}[{TILE_IDS}, {TILE_HIDDEN}]>",
                "hidden": f"tensordesc<{dtype}[{tile_rows}, {TILE_HIDDEN}]>",
                "hidden_size": "i32",
                "vocab": "i32",
                "first_id": "i32",
                "row_count": "i32",
                "partials_ptr": "*fp32",
                **RULES,
            }
            constants = {
                "SAMPLED": sampled,
                "IDS": TILE_IDS,
                "ROWS": tile_rows,
                "HIDDEN": TILE_HIDDEN,
                "PASSES": passes,
            }
            name = f"denoise_head/fused/{dtype}/{rows} rows/{kind}"
            most = 128 if passes == 2 else None
            FORMS.append(Form(name, _fused_kernel, types, constants, warps, stages, ("hidden_size",), most))
        types = {
            "logits_ptr": f"*{dtype}",
            "count": "i32",
            "first_id": "i32",
            "first_part": "i32",
            "part_count": "i32",
            "row_count": "i32",
            "partials_ptr": "*fp32",
            **RULES,
        }
        constants = {"SAMPLED": sampled, "IDS": PIECE}
        FORMS.append(
            Form(f"denoise_head/pieces/{dtype}/{kind}", _pieces_kernel, types, constants, 8, multiples_of_16=("count",))
        )
for parts in (16, 1024):
    for sampled in (False, True):
        for ends in (False, True):
            name = f"combine/{parts} parts/{'sampled' if sampled else 'greedy'}/{'finish' if ends else 'merge'}"
            types = {
                "partials_ptr": "*fp32",
                "merged_ptr": "*fp32",
                "tokens_ptr": "*i64",
                "values_ptr": "*fp32",
                "temperature_ptr": "*fp32",
                "tempered_ptr": "*u8",
                "rows": "i32",
                "parts": "i32",
            }
            constants = {"SAMPLED": sampled, "FINISH": ends, "PARTS": parts}
            FORMS.append(Form(name, _combine_kernel, types, constants, max(1, min(4, parts // 128))))
