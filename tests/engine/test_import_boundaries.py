"""Imports go one way: deployments -> engine -> kernels, and Ray stays in deployments."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) of every import statement below a folder, those inside functions too."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((str(file.relative_to(ROOT)), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield str(file.relative_to(ROOT)), node.module


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kernels", {"engine", "deployments", "ray", "benchmarks", "tests"}),
        ("engine", {"deployments", "ray", "tests", "fastapi", "starlette", "prometheus_client"}),
        ("deployments", {"tests", "benchmarks"}),
    ],
)
def test_a_layer_does_not_import_the_one_above(folder: str, forbidden: set[str]) -> None:
    found = list(imports(folder))
    assert len(found) > 10
    assert [(file, module) for file, module in found if module.split(".")[0] in forbidden] == []


def loaded_by(module: str) -> set[str]:
    """Top-level modules that importing `module` in a fresh interpreter loads."""
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert not loaded_by("engine.cli") & {"torch", "transformers", "ray", "triton", "numpy"}


def test_who_deploys_needs_neither_torch_nor_numba() -> None:
    assert not loaded_by("deployments.app") & {"torch", "transformers", "numba"}


def test_plans_and_request_fields_need_no_torch() -> None:
    assert not loaded_by("engine.request") & {"torch", "transformers", "ray"}


def test_the_engine_runs_without_ray_and_transformers() -> None:
    assert not loaded_by("engine.engine") & {"transformers", "ray", "fastapi"}
