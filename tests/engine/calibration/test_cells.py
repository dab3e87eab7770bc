"""What is measured: bounded by the model's block size, pinned, and named without collisions."""

from __future__ import annotations

import pytest

from engine.calibration.cells import (
    Cell,
    bar_rungs,
    block_lengths,
    candidate_rungs,
    curve_rungs,
    describe,
    sampled_rungs,
)
from engine.plan import AR, diffusion, self_speculation
from engine.request import pinned_rung


@pytest.mark.parametrize(
    ("block_size", "lengths"), [(32, (4, 8, 16, 32)), (16, (4, 8, 16)), (24, (4, 8, 16, 24)), (2, (2,))]
)
def test_no_rung_is_longer_than_the_models_block(block_size: int, lengths: tuple[int, ...]) -> None:
    assert block_lengths(block_size) == lengths
    for rung in [*curve_rungs(block_size), *candidate_rungs(block_size), *sampled_rungs(block_size, [])]:
        assert rung.refinement_steps <= rung.block_length <= block_size


def test_the_curve_of_the_family() -> None:
    curve = curve_rungs(32)
    assert curve[: len(bar_rungs(32))] == bar_rungs(32)
    wanted = [AR, *(self_speculation(length) for length in (4, 8, 16, 32))]
    wanted += [diffusion(n, k) for n in (4, 8, 16, 32) for k in (1, 2, 4, 8, 16, 32) if k <= n]
    wanted += [diffusion(n, None, t) for n in (8, 32) for t in (0.5, 0.7, 0.9, 0.95, 0.99)]
    wanted += [diffusion(n, None, 0.9) for n in (4, 16)]
    assert set(curve) == set(wanted)
    assert len(curve) == len(wanted)


def test_every_cell_pins_its_rung_and_has_a_file_of_its_own() -> None:
    rungs = list(dict.fromkeys([*curve_rungs(32), *candidate_rungs(32)]))
    cells = [
        Cell(rung, split, load, 10, temperature)
        for rung in rungs
        for split in ("calibration", "test")
        for load in (1, 64)
        for temperature in (0.0, 0.7)
    ]
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        pinned = pinned_rung(cell.options(0, 3, 64), 32)
        assert pinned is not None
        if cell.split == "test" and cell.rung.audit == "off" and cell.rung.is_diffusion:
            assert pinned.audit == "score"
            assert pinned.policy()[:4] == cell.rung.policy()[:4]
        else:
            assert pinned.policy() == cell.rung.policy()


def test_every_answer_of_a_prompt_has_its_own_seed_and_rungs_share_them() -> None:
    seeds = {
        (prompt, sample): Cell(AR, "test", 8, 10, 0.7, 3).options(sample, prompt, 9).seed
        for prompt in range(10)
        for sample in range(3)
    }
    assert len(set(seeds.values())) == 30
    other = Cell(diffusion(8, 2), "test", 8, 10, 0.7, 3)
    assert all(other.options(sample, prompt, 9).seed == seed for (prompt, sample), seed in seeds.items())


def test_rungs_are_described_in_words() -> None:
    assert describe(AR) == "AR"
    assert describe(self_speculation(16)) == "self-speculation 16"
    assert describe(diffusion(32, 4, 0.9, 0.5)) == "diffusion 32, 4 steps, threshold 0.9, audit 0.5"
    assert describe(diffusion(8, 1)) == "diffusion 8, 1 step"
