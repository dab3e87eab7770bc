"""What is compiled: it is found again only under its own file's date, so it may depend on nothing of other files."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numba
import pytest

from deployments import prediction_arithmetic
from engine import pace_arithmetic
from engine.compiled import compiled

FILES = (pace_arithmetic, prediction_arithmetic)


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
    assert len(found) > 3
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
