"""What is compiled: it is found again only under its own file's date, so it may depend on nothing of other files."""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest

from deployments import prediction_arithmetic
from engine import pace_arithmetic
from engine.decoding import last_blocks_arithmetic
from kernels import reach_work_arithmetic
from kernels.compiled import compiled

ROOT = Path(__file__).parents[2]
FILES = (pace_arithmetic, prediction_arithmetic, last_blocks_arithmetic, reach_work_arithmetic)


def functions(module: ModuleType) -> Iterator[Any]:
    return (value for value in vars(module).values() if hasattr(value, "py_func"))


def defined(module: ModuleType) -> set[str]:
    """Names that the module's own statements give a value to."""
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("module", FILES)
def test_a_compiled_function_uses_its_own_file_alone(module: ModuleType) -> None:
    own, libraries = defined(module), {"math", "np", "inf"}
    found = list(functions(module))
    assert found
    for function in found:
        code = function.py_func.__code__
        borrowed = {name for name in code.co_names if name in vars(module)} - own - libraries
        assert not borrowed, f"{function.__name__} would not see a change of {borrowed}"


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    njit = numba.njit

    def nowhere(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("no locator available")
        return njit(**options)

    def half(value: float, parts: float) -> float:
        return value / parts

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(numba, "njit", nowhere)
        found = compiled(half)
    assert found(1.0, 4.0) == 0.25
    assert found(1.0, 0.0) == float("inf")
    assert "is compiled anew in every process: no locator available" in caplog.text


SERVED = """
from deployments.warm_up import warm_up
from engine import pace_arithmetic
from engine.admission import Newcomer
from engine.plan import AR, Plan
from tests.engine.serving import PROMPTS, answer, load

def versions():
    return {name: len(one.signatures) for name, one in vars(pace_arithmetic).items() if hasattr(one, "signatures")}

engine = load()
warm_up(engine)
before = versions()
fields = {"max_tokens": 8, "latency_slo_ms": 60_000, "ttft_slo_ms": 50_000}
answer(engine, [(prompt, fields) for prompt in PROMPTS[:2]])
assert engine.rung_for(Newcomer(Plan(ladder=(AR,)), 4, 8, left_s=9.0, first_left_s=5.0)) is not None
assert engine.stats().slip_s == 0.0
inlined = "tokens_ahead"
assert all(count == 1 for name, count in before.items() if name != inlined), before
assert versions() == before
"""


def test_a_replica_that_is_warm_compiles_nothing_more() -> None:
    subprocess.run([sys.executable, "-c", SERVED], cwd=ROOT, check=True)
