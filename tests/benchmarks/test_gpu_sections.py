"""Sections of the GPU benchmark: what one says of its rows, by itself and in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import ceilings
from benchmarks.gpu.floors import Ceilings
from benchmarks.gpu.section import DeviceLost, Section
from benchmarks.gpu.task import LOST, Task, run_apart, run_here


def test_a_section_that_raises_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu import forward

    def fails(section: Section) -> None:
        section.row("before", lambda: {"value": 1})
        raise RuntimeError("no such device")

    monkeypatch.setattr(ceilings, "run", fails)
    monkeypatch.setattr(forward, "run", lambda section: section.row("after", lambda: {"value": 2}))
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--no-apart", "--output", str(file), "--sections", "forward", "ceilings"]
    assert command.main(arguments) == 1
    found = json.loads(file.read_text())["sections"]
    assert list(found) == ["ceilings", "forward"]
    assert found["ceilings"]["rows"] == [{"name": "before", "value": 1}]
    (error,) = found["ceilings"]["errors"]
    assert error["error"] == "RuntimeError: no such device"
    assert "in fails" in error["traceback"]
    assert found["forward"]["rows"] == [{"name": "after", "value": 2}]
    assert "ERROR in ceilings: RuntimeError: no such device" in capsys.readouterr().out


def test_a_section_apart_says_what_it_found_and_ends_by_the_clock() -> None:
    found = run_apart(Task("ceilings", "cpu", True, None, 60))
    assert [row["name"] for row in found["rows"]] == ["copy", "product"]
    assert found["errors"] == []
    ended = run_apart(Task("ceilings", "cpu", True, None, 0.01), grace_s=0)
    (error,) = ended["errors"]
    assert error["error"] == "ended by the clock after 0 s"


def test_a_section_whose_process_dies_says_how() -> None:
    (error,) = run_apart(Task("ceilings", "no such device", True, None, 60))["errors"]
    assert error["error"] == "the section's process ended with status 1"
    assert "no such device" in error["traceback"]


def test_where_the_device_is_lost_another_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section of which the second row ends CUDA for its process, and in a later one nothing more can be recorded."""
    made: list[str] = []

    def run(part: Section) -> None:
        for name in ("one", "two", "three", "four"):
            part.row(name, partial(row, part, name))

    def row(part: Section, name: str) -> dict[str, Any]:
        made.append(name)
        if name == "two":
            raise RuntimeError("illegal memory access")
        if name == "three":
            part.fail("three: graph", ValueError("not recorded"))
        return {"value": len(name)}

    def released(part: Section) -> None:
        raise DeviceLost("nothing works any more")

    def process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        try:
            run_here(Task.from_json(command[3]), Path(command[4]))
        except DeviceLost:
            return subprocess.CompletedProcess(command, LOST)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setitem(sys.modules, "benchmarks.gpu.losing", cast(Any, SimpleNamespace(run=run)))
    monkeypatch.setattr(Section, "release", released)
    monkeypatch.setattr("benchmarks.gpu.task.subprocess.run", process)
    found = run_apart(Task("losing", "cpu", True, None, 60))
    assert made == ["one", "two", "three", "four"], "each once"
    assert [row["name"] for row in found["rows"]] == ["one", "three", "four"]
    assert [error["name"] for error in found["errors"]] == ["two", "three: graph"]
    assert found["left_out"] == []


def test_a_row_that_raises_does_not_stop_the_others_and_time_runs_out(tmp_path: Path) -> None:
    part = Section(torch.device("cpu"), tiny=True, ceilings=Ceilings(1e10, 1e11), ends_s=float("inf"))
    part.file = tmp_path / "section.json"

    def fails() -> dict[str, Any]:
        raise ValueError("wrong shape")

    part.row("one", fails)
    part.row("two", lambda: {"value": 2})
    kept = json.loads(part.file.read_text())
    assert kept["rows"] == [{"name": "two", "value": 2}]
    assert "ValueError: wrong shape" in kept["errors"][0]["traceback"]
    part.ends_s = 0
    part.row("three", lambda: {"value": 3})
    assert part.rows == [{"name": "two", "value": 2}]
    assert [error["name"] for error in part.errors] == ["one"]
    assert part.left_out == [{"name": "three", "reason": "no time left"}]
