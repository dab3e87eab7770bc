"""Compiles kernels for sm_90 without a GPU and says what each form uses: registers, memory, tensor-core instructions.

`python -m tests.kernels.aot [word]` compiles the forms of every `tests/kernels/*_forms.py` (those whose name holds the
word) and prints JSON; `test_aot.py` holds the result against `budget.json`. Run it in a process without
TRITON_INTERPRET: kernels that were decorated for the interpreter cannot be compiled.

Pointers are told to be multiples of 16 bytes, and so are the integers a form names, as a real launch would find them:
without these hints a kernel compiles to two-byte loads and figures that mean nothing. bf16 and fp16 both compile here;
bf16 is what a GPU runs, and what the interpreter gets wrong.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGET = GPUTarget("cuda", 90, 32)
MOST_SHARED_BYTES = 232_448
"""227 KiB, what one program may have on sm_90; the compiler does not refuse more."""
COUNTED = {
    "HGMMA": "HGMMA",  # products on Hopper's tensor cores
    "HMMA": "HMMA",  # products on the older path, half as fast
    "UTMALDG": "UTMALDG",  # loads of the tensor memory accelerator
    "UBLKPF": "UBLKPF",  # begins to read into L2
    "PREEXIT": "PREEXIT",  # lets the next kernel start
    "LDGSTS": "LDGSTS",  # asynchronous copies to shared memory
    "SPILLS": r"(?:LDL|STL)",  # traffic with the stack
}
WAIT = re.compile(r"\bACQBULK\b")
"""Where a program waits for the kernels before its own (`kernels/overlap.py`)."""
AFTER_IT = re.compile(r"\b(?:LDG|LDGSTS|UTMALDG|STG|UTMASTG|ATOMG?|RED|EXIT|PREEXIT)\b")
"""Whatever may not stand before it: reading and writing what other kernels write and read, letting the next kernel
start, and the end. The code is read from the top, not along its branches: the wait is to stand there."""


@dataclass(frozen=True)
class Form:
    """One compiled form of a kernel.

    Attributes:
        name: "kernel/dtype/what it is for"; the key in `budget.json`.
        kernel: the `triton.jit` function.
        types: Triton's type of every argument that is no constexpr: "*bf16", "i32", "fp32",
            "tensordesc<bf16[128, 64]>". An argument that is None goes to `constants`.
        constants: the constexpr arguments.
        multiples_of_16: integer arguments that are (strides, hidden sizes).
        most_registers: a limit the launch sets (`maxnreg`), None for none.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3
    multiples_of_16: tuple[str, ...] = field(default=())
    most_registers: int | None = None


def compile_for(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    warps: int,
    stages: int = 3,
    multiples_of_16: tuple[str, ...] = (),
    most_registers: int | None = None,
) -> dict[str, int]:
    """Resources of one form: WARPS of a program, REG and STACK, LOCAL, SHARED in bytes (of a thread, a thread, a
    program), how many instructions of each kind in `COUNTED` its code has, its WAITS for the kernels before it, and how
    many instructions come TOO EARLY, before such a wait (0 without one).

    Raises ValueError when `types` and `constants` are not exactly the kernel's arguments, and what Triton or ptxas
    raise when it does not compile.
    """
    given = [*types, *constants]
    if sorted(given) != sorted(kernel.arg_names):
        odd = sorted(set(given) ^ set(kernel.arg_names))
        raise ValueError(f"{kernel.__name__}: arguments that are missing, unknown or given twice: {odd}")
    hinted = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if types.get(name, "").startswith("*") or name in multiples_of_16
    }
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=hinted)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": most_registers}
    compiled = triton.compile(source, target=TARGET, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "--dump-resource-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    counts = {name: len(re.findall(rf"\b{pattern}\b", code)) for name, pattern in COUNTED.items()}
    waits = [match.start() for match in WAIT.finditer(code)]
    early = len(AFTER_IT.findall(code[: waits[0]])) if waits else 0
    counts |= {"WAITS": len(waits), "TOO EARLY": early}
    return {"WARPS": warps, **found, "SHARED": compiled.metadata.shared, **counts}


def forms(word: str = "") -> list[Form]:
    """The forms of all `*_forms.py` beside this file whose name holds `word`."""
    modules = [importlib.import_module(f"tests.kernels.{path.stem}") for path in sorted(HERE.glob("*_forms.py"))]
    return [form for module in modules for form in module.FORMS if word in form.name]


def resources(form: Form) -> dict[str, int]:
    return compile_for(
        form.kernel,
        form.types,
        form.constants,
        form.warps,
        form.stages,
        form.multiples_of_16,
        form.most_registers,
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(json.dumps({form.name: resources(form) for form in forms(*sys.argv[1:2])}, indent=2))
