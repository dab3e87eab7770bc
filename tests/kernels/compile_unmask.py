"""Compiles the unmask kernel for sm_90 without a GPU and prints its resources as JSON. Run by `test_unmask_triton.py`
in a process of its own: kernels that were decorated for the interpreter cannot be compiled."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.unmask import _unmask_kernel

TYPES = {
    "canvas_ptr": "*i64",
    "masked_ptr": "*u8",
    "candidate_ptr": "*i64",
    "confidence_ptr": "*fp32",
    "length_ptr": "*i64",
    "steps_left_ptr": "*i64",
    "threshold_ptr": "*fp32",
    "stop_ids_ptr": "*i64",
    "masks_left_ptr": "*i64",
    "first_stop_ptr": "*i64",
    "done_ptr": "*u8",
    "width": "i32",
    "stop_count": "i32",
    "LANES": "constexpr",
}


def resources(lanes: int, warps: int) -> dict[str, int]:
    """Registers, stack (spills) and shared memory in bytes of one compiled form."""
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(_unmask_kernel.arg_names)
        if name.endswith("_ptr")
    }
    source = ASTSource(_unmask_kernel, TYPES, constexprs={"LANES": lanes}, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {**found, "SHARED": kernel.metadata.shared}


if __name__ == "__main__":
    print(json.dumps({str(lanes): resources(lanes, max(1, lanes // 64)) for lanes in (16, 32, 64)}))
