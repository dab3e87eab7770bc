"""What the planner knows of a checkpoint's quality, by rung and temperature, and whose curve it believes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployments.quality import QualityMap, read_quality_map
from engine.checkpoint.identity import checkpoint_identity
from engine.errors import CheckpointError
from engine.plan import AR, diffusion, self_speculation
from tests.oracle.random_model import random_tensors, raw_config, save_checkpoint

CELL: dict[str, Any] = {
    "split": "test", "temperature": 0.0, "decoding": "diffusion", "block_length": 32, "refinement_steps": 4,
    "threshold": None, "audit": "off", "quality": 0.9, "quality_low": 0.88, "tokens_per_forward": 5.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = raw_config(num_hidden_layers=1)
    return save_checkpoint(tmp_path_factory.mktemp("quality") / "checkpoint", raw, random_tensors(raw))


@pytest.fixture
def checkpoint(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "checkpoint"))


def save(checkpoint: Path, name: str, identity: str | None = None, **data: Any) -> None:
    data = {"identity": identity or checkpoint_identity(checkpoint), **data}
    (checkpoint / name).write_text(json.dumps(data))


def save_both(checkpoint: Path) -> None:
    warm = {**CELL, "temperature": 0.7}
    cells = [
        CELL,
        {**CELL, "split": "calibration", "quality_low": 0.1},
        {**CELL, "block_length": 16, "refinement_steps": 2, "quality_low": 0.7},
        {**warm, "quality_low": 0.6},
        {**warm, "refinement_steps": 8, "quality_low": 0.5},
    ]
    rungs = [
        {**AR.to_dict(), "expected_quality": 0.96, "quality_at": {"0.7": {"value": 0.95, "low": 0.94, "high": 0.96}}},
        {**diffusion(32, 8).to_dict(), "expected_quality": 0.95, "quality_at": {"0.7": {"low": 0.55}}},
    ]
    save(checkpoint, "quality.json", cells=cells)
    save(checkpoint, "ladder.json", rungs=rungs, measured={"temperature": 0.0})


def test_rungs_come_from_ladder_and_curve_best_first(checkpoint: Path) -> None:
    save_both(checkpoint)
    quality = read_quality_map(checkpoint, 32)
    assert [rung.policy() for rung in quality.ladder] == [AR.policy(), diffusion(32, 8).policy()]
    assert [(rung.block_length, rung.refinement_steps, rung.expected_quality) for rung in quality.diffusion] == [
        (32, 8, 0.95), (32, 4, 0.88), (16, 2, 0.7),
    ]  # fmt: skip
    assert quality.described(diffusion(32, 4)).expected_tokens_per_forward == 5.0


def test_quality_is_promised_only_for_temperatures_that_were_measured(checkpoint: Path) -> None:
    save_both(checkpoint)
    quality = read_quality_map(checkpoint, 32)
    assert quality.expected_quality(diffusion(32, 4), 0.0) == 0.88
    assert quality.expected_quality(diffusion(32, 4), 0.7) == 0.6
    assert quality.expected_quality(diffusion(32, 4), 0.2) == 0.6, "the higher measured temperature is the safe one"
    assert quality.expected_quality(diffusion(32, 8), 0.7) == 0.55, "the ladder's own value, not the single cell's"
    assert quality.expected_quality(AR, 0.5) == 0.94
    assert quality.expected_quality(diffusion(16, 2), 0.7) is None
    assert quality.expected_quality(AR, 0.8) is None
    assert quality.expected_quality(self_speculation(8), 0.0) is None


def test_without_files_there_is_a_plain_scale_and_no_promise(tmp_path: Path) -> None:
    quality = read_quality_map(tmp_path, 16)
    assert [rung.refinement_steps for rung in quality.diffusion] == [16, 12, 8, 6, 4, 3, 2, 1]
    assert quality.ladder == ()
    assert quality.expected_quality(diffusion(16, 4), 0.0) is None
    assert QualityMap().expected_quality(AR, 0.0) is None


@pytest.mark.parametrize("name", ["ladder.json", "quality.json"])
def test_another_checkpoints_curve_is_refused(checkpoint: Path, name: str) -> None:
    save_both(checkpoint)
    data = json.loads((checkpoint / name).read_text())
    save(checkpoint, name, **{**data, "identity": "sha256:" + "0" * 64})
    with pytest.raises(CheckpointError, match=rf"{name} was measured on another checkpoint"):
        read_quality_map(checkpoint, 32)
    del data["identity"]
    (checkpoint / name).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"{name} does not say .* run `stepdial calibrate"):
        read_quality_map(checkpoint, 32)


def test_a_calibration_may_lie_in_a_folder_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    save_both(checkpoint)
    beside = read_quality_map(checkpoint, 32)
    folder = tmp_path / "measured"
    folder.mkdir()
    for name in ("ladder.json", "quality.json"):
        (checkpoint / name).rename(folder / name)
    assert read_quality_map(checkpoint, 32).ladder == ()
    assert read_quality_map(checkpoint, 32, calibration=folder) == beside
    with pytest.raises(CheckpointError, match=r"which has no ladder\.json"):
        read_quality_map(checkpoint, 32, calibration=checkpoint)
    data = json.loads((folder / "ladder.json").read_text())
    (folder / "ladder.json").write_text(json.dumps({**data, "identity": "sha256:0"}))
    with pytest.raises(CheckpointError, match=r"measured/ladder\.json was measured on another checkpoint"):
        read_quality_map(checkpoint, 32, calibration=folder)


def test_a_file_of_another_form_is_named(checkpoint: Path) -> None:
    for cells in ([{"split": "test"}], [5], 5):
        save(checkpoint, "quality.json", cells=cells)
        with pytest.raises(CheckpointError, match="has another form"):
            read_quality_map(checkpoint, 32)
    (checkpoint / "quality.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"quality\.json is not JSON"):
        read_quality_map(checkpoint, 32)


def test_blocks_longer_than_the_models_are_not_offered(checkpoint: Path) -> None:
    save_both(checkpoint)
    assert {rung.block_length for rung in read_quality_map(checkpoint, 16).diffusion} == {16}
