"""The whole command on a small random checkpoint: a user's prompts in, a curve and a ladder of this checkpoint out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.calibration.calibrate import Calibration, calibrate
from engine.calibration.options import CalibrationOptions
from engine.calibration.prompts import EvaluationError
from engine.checkpoint.identity import check_identity
from engine.cli import app
from engine.plan import AR, Rung
from engine.request import equivalent_to_ar


@pytest.fixture(scope="module")
def checkpoint(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(text_checkpoint, tmp_path_factory.mktemp("calibrated") / "random"))


@pytest.fixture(scope="module")
def options(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrationOptions:
    folder = tmp_path_factory.mktemp("calibration")
    lines = [{"prompt": f"Question {number}?", "label": "ab"[number % 2]} for number in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return CalibrationOptions(
        model=checkpoint,
        prompts=folder / "prompts.jsonl",
        output=folder / "out",
        calibration_prompts=10,
        selection_prompts=10,
        test_prompts=10,
        sampled_prompts=4,
        load_prompts=4,
        loads=(1, 8),
        max_tokens=8,
        workers=1,
        command="stepdial calibrate --test",
    )


@pytest.fixture(scope="module")
def said(options: CalibrationOptions) -> str:
    """Runs the calibration once; what it printed."""
    lines: list[str] = []
    assert calibrate(options, lines.append)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def curve(said: str, options: CalibrationOptions) -> dict[str, Any]:
    return dict(json.loads((options.output / "quality.json").read_text()))


@pytest.fixture(scope="module")
def ladder(said: str, options: CalibrationOptions) -> dict[str, Any]:
    return dict(json.loads((options.output / "ladder.json").read_text()))


def cells(curve: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [cell for cell in curve["cells"] if all(cell[name] == value for name, value in wanted.items())]


def test_prompts_alone_are_measured_by_agreement_and_named_so(curve: dict[str, Any], said: str) -> None:
    assert curve["measured"]["metric"] == "agreement_with_ar"
    assert "the same tokens as the model's own AR answer" in said
    assert {cell["metric"] for cell in curve["cells"]} == {"agreement_with_ar"}
    (ar,) = cells(curve, split="test", temperature=0.0, decoding="ar")
    assert ar["quality"] == 1.0
    assert ar["audit_logprob"] < 0
    assert not any("exact_match" in cell for cell in curve["cells"])


def test_exact_rungs_agree_with_ar_and_the_curve_is_whole(curve: dict[str, Any]) -> None:
    for cell in cells(curve, temperature=0.0, decoding="self_speculation"):
        assert cell["quality"] == 1.0
    for counts in curve["self_speculation_differs_from_ar"].values():
        assert set(counts.values()) == {0}
    assert curve["self_speculation_differs_from_ar"].keys() == {"0", "0.7"}
    assert curve["missing"] == []
    assert set(cells(curve, split="test", temperature=0.0)[0]["by_label"]) == {"a", "b"}
    assert len(cells(curve, split="test", temperature=0.7)) >= 2
    assert {cell["samples"] for cell in cells(curve, temperature=0.7)} == {2}


def test_the_ladder_accounts_for_every_candidate(ladder: dict[str, Any], said: str) -> None:
    measured = ladder["measured"]
    assert (measured["chosen_on"], measured["split"]) == ("calibration", "selection")
    assert len(ladder["rungs"]) + len(ladder["omitted"]) == measured["candidates"] == 29
    assert 1 <= len(ladder["rungs"]) <= 8
    assert all(entry["reason"] for entry in ladder["omitted"])
    rungs = [Rung.from_dict(entry) for entry in ladder["rungs"]]
    assert AR.policy() in [rung.policy() for rung in rungs]
    qualities = [rung.expected_quality for rung in rungs]
    assert qualities == sorted(qualities, key=lambda value: -(value or 0))
    assert len({rung.expected_quality for rung in rungs if rung.exact}) == 1
    assert [rung for rung in rungs if rung.exact] == [rung for rung in equivalent_to_ar(rungs) if rung.exact]
    for entry in ladder["rungs"]:
        assert entry["cost_ms_at_load"].keys() == {"1", "8"}
        assert entry["quality_at"].keys() == {"0.7"}
    assert "## Measured and not offered" in said


def test_files_lie_beside_the_checkpoint_and_belong_to_it(said: str, options: CalibrationOptions) -> None:
    for name in ("quality.json", "ladder.json"):
        data = json.loads((options.model / name).read_text())
        assert data == json.loads((options.output / name).read_text())
        assert data["model"] == "random"
        check_identity(options.model, data, name)
    assert (options.output / "quality.png").stat().st_size > 10_000
    assert (options.output / "calibration.md").read_text() in said


def test_a_second_run_measures_nothing_again(said: str, options: CalibrationOptions) -> None:
    def saved() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in options.output.glob("cells/*/*.jsonl")}

    before = saved()
    assert len(before) > 80
    assert calibrate(replace(options, install=False), lambda _: None)
    assert saved() == before


def test_what_there_is_no_time_for_is_missing_and_no_ladder_is_written(
    options: CalibrationOptions, tmp_path: Path
) -> None:
    lines: list[str] = []
    assert not calibrate(replace(options, output=tmp_path, minutes=0.0, install=False), lines.append)
    curve = json.loads((tmp_path / "quality.json").read_text())
    assert curve["cells"] == []
    assert "calibration-T0-load8-ar-n1-k1" in curve["missing"]
    assert not (tmp_path / "ladder.json").exists()
    assert "No ladder was written" in "\n".join(lines)


def test_another_model_needs_prompts_of_its_own(options: CalibrationOptions) -> None:
    with pytest.raises(EvaluationError, match=r"is not stepdial-tiny.*--prompts"):
        Calibration(replace(options, prompts=None))


def test_wrong_loads_and_temperatures_are_refused(options: CalibrationOptions) -> None:
    with pytest.raises(EvaluationError, match=r"temperatures are \[0.7\]; allowed"):
        replace(options, temperatures=(0.7,))
    with pytest.raises(EvaluationError, match=r"loads are \[0\]; allowed"):
        replace(options, loads=(0,))


def test_the_command_says_what_is_wrong_with_the_prompts(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": 3}\n')
    result = CliRunner().invoke(
        app, ["calibrate", "--model", str(checkpoint), "--prompts", str(file), "--output", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert "line 1, prompt: is 3; allowed: text" in result.output
    result = CliRunner().invoke(app, ["calibrate", "--model", str(checkpoint), "--loads", "1,many"])
    assert result.exit_code == 2
    assert "allowed: numbers with commas" in result.output
