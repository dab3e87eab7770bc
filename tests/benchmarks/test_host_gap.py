"""The host between two forwards is measured on a device that keeps time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import host_gap
from benchmarks.host_gap import MODES, Timeline, measured
from engine import packing


def test_a_device_that_has_work_has_no_gap() -> None:
    timeline = Timeline(0.02)
    fetch = timeline.after_waiting(lambda tensors: tensors)
    timeline.launch()
    timeline.launch()
    begun = time.perf_counter()
    assert fetch(3) == 3
    assert time.perf_counter() - begun > 0.03, "both forwards are waited for"
    time.sleep(0.01)
    timeline.launch()
    assert timeline.gaps[1] == 0.0
    assert timeline.gaps[2] > 0.009


@pytest.mark.parametrize("mode", MODES)
def test_every_forward_of_the_answers_has_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_gap, "TOKENS", 32)
    fetch = packing.fetched
    gaps = measured(MODES[mode], canvases=2, context=40, forward_s=3e-3, seed=0)
    assert packing.fetched is fetch
    assert len(gaps) >= {"ar": 30, "diffusion": 8, "diffusion by threshold": 4, "self-speculation": 3}[mode]
    assert all(gap >= 0 for gap in gaps)
    waited = sum(gap > 0 for gap in gaps)
    assert waited > 0
    if mode in ("ar", "diffusion"):
        # Forwards in a row: the host sees the last one.
        assert waited < len(gaps) / 2


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_gap, "MODES", {"self-speculation": MODES["self-speculation"]})
    monkeypatch.setattr(host_gap, "TOKENS", 32)
    file = tmp_path / "gap.json"
    host_gap.main(["--canvases", "1", "--runs", "2", "--device-ms", "0.1", "--context", "8", "--output", str(file)])
    (row,) = json.loads(file.read_text())["results"]
    assert row["mode"] == "self-speculation"
    assert len(row["mean_us_of_runs"]) == 2
    assert f"{row['mean_us']:7.0f}" in capsys.readouterr().out
