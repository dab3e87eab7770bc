"""The profile map: cells of real tasks by length, and rows that show losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.command import CHECKPOINT
from benchmarks.profile_map import OUTPUT_CLASSES, PROMPT_CLASSES, MapCell, cells_of, class_of, row_of
from benchmarks.profile_plot import plot
from engine.checkpoint.tokenizer import Tokenizer

LOSSY = {"ar": False, "self-speculation 32": False, "self-speculation 8": False, "diffusion 32 K2": True}
RIGHT = dict.fromkeys(LOSSY, 1.0)


def row(prompt: str = "up to 48", concurrency: int = 1, **speeds: float) -> dict:
    speeds = speeds or {
        "ar": 200.0,
        "self-speculation 32": 150.0,
        "self-speculation 8": 300.0,
        "diffusion 32 K2": 900.0,
    }
    return row_of(MapCell(prompt, "32 to 95", []), concurrency, speeds, RIGHT, LOSSY)


def test_the_winner_has_ars_quality_and_losses_are_shown() -> None:
    found = row()
    assert (found["winner"], found["second"]) == ("self-speculation 8", "ar")
    assert found["winner_over_second"] == pytest.approx(1.5)
    assert found["over_ar"]["self-speculation 32"] == pytest.approx(0.75)
    assert found["winner_with_lossy"] == "diffusion 32 K2"


@pytest.mark.parametrize(("tokens", "name"), [(1, "up to 48"), (48, "up to 48"), (49, "49 to 96"), (300, None)])
def test_lengths_belong_to_one_class_or_none(tokens: int, name: str | None) -> None:
    assert class_of(tokens, PROMPT_CLASSES) == name


def test_cells_hold_tasks_of_their_lengths_long_chats_among_them() -> None:
    tokenizer = Tokenizer.from_dir(CHECKPOINT)
    assert tokenizer is not None
    cells = cells_of(tokenizer, seed=1, prompts=10, tasks=700)
    assert {cell.prompt_class for cell in cells} == set(PROMPT_CLASSES)
    for cell in cells:
        assert 8 <= len(cell.requests) <= 10
        for request in cell.requests:
            least, most = PROMPT_CLASSES[cell.prompt_class]
            assert least <= len(request.prompt) <= most
            least, most = OUTPUT_CLASSES[cell.output_class]
            assert least <= len(tokenizer.encode(request.answer, add_bos=False)) + 1 <= most


def test_the_picture_is_drawn_where_cells_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    plot([row(), row("49 to 96"), row("49 to 96", concurrency=16)], list(LOSSY), file)
    assert file.read_bytes().startswith(b"\x89PNG")
