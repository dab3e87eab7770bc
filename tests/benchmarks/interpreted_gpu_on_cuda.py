"""Sections of the GPU benchmark on a simulated GPU (`tests/simulated_cuda.py`), kernels interpreted: what they do on a
GPU alone. Run by `test_simulated_cuda.py` in a process of its own."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import correctness_model, end_to_end, forward
from benchmarks.gpu.floors import Ceilings
from benchmarks.gpu.section import Section
from benchmarks.gpu.shapes import TINY
from engine import graphs
from tests.simulated_cuda import simulated


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch) -> Section:
    monkeypatch.setenv("STEPDIAL_KERNELS", "auto")
    return Section(torch.device("cuda"), tiny=True, ceilings=Ceilings(1e10, 1e11), ends_s=float("inf"))


def found(section: Section) -> list[str]:
    """The names of the rows; nothing has failed, no check was wrong."""
    assert [error["traceback"] for error in section.errors] == []
    assert all(row.get("passed", True) for row in section.rows)
    return [row["name"] for row in section.rows]


def test_a_forward_is_recorded_and_compared(section: Section) -> None:
    with simulated() as gpu:
        forward.model(section, "tiny", TINY, (1,), (40,))
        assert gpu.replays > 0
    assert found(section) == ["tiny, 1 x 40"]
    assert section.rows[0]["graph_failed"] is None
    assert section.rows[0]["over_floor"] > 0


def test_a_forward_in_fp8_too(section: Section) -> None:
    with simulated():
        forward.model(section, "tiny fp8", TINY, (1,), (40,))
    assert found(section) == ["tiny fp8, 1 x 40"]


def test_bf16_is_held_against_float32(section: Section) -> None:
    with simulated():
        section.row("bf16 against float32", lambda: correctness_model.layers(section))
    assert found(section) == ["bf16 against float32"]


def test_modes_answer_one_by_one_and_in_graphs(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "CONCURRENT", (1,))
    monkeypatch.setattr(end_to_end, "MODES", {name: end_to_end.MODES[name] for name in ("self-speculation",)})
    monkeypatch.setattr(end_to_end, "PROMPT_TOKENS", 16)
    monkeypatch.setattr(graphs, "TOKENS", (8, 32))
    monkeypatch.setattr(end_to_end, "references", lambda *_: None)
    monkeypatch.setattr(end_to_end, "TINY_TOKENS", 8)
    with simulated() as gpu:
        end_to_end.run(section)
        assert gpu.replays > 0
    assert found(section) == ["engine, self-speculation, 1", "engine in graphs, self-speculation, 1"]
