"""The simulated GPU refuses what a GPU refuses, and the engine and its benchmark run on it."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.isolated import interpreted


def test_it_refuses_what_a_gpu_refuses_and_the_engine_runs_on_it() -> None:
    interpreted(Path(__file__).with_name("interpreted_cuda.py"), least=9)


def test_the_benchmark_runs_on_it() -> None:
    interpreted(Path(__file__).parent / "benchmarks" / "interpreted_gpu_on_cuda.py", least=4)
