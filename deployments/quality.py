"""What is known about a checkpoint's quality: the ladder and the measured curve beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.json_file import read_json
from engine.errors import CheckpointError
from engine.plan import Decoding, Rung, diffusion

LADDER_FILE = "ladder.json"
CURVE_FILE = "quality.json"
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True)
class QualityMap:
    """A checkpoint's rungs with what was measured of them.

    Attributes:
        ladder: best first; empty where the checkpoint has none.
        diffusion: every measured diffusion rung (or a plain scale of budgets where nothing is), best first: what a
            request that pins `decoding: diffusion` and states an SLO chooses from.
        temperature: the highest temperature that the calibration holds for; None without a calibration.
    """

    ladder: tuple[Rung, ...] = ()
    diffusion: tuple[Rung, ...] = ()
    temperature: float | None = None
    known: dict[tuple[object, ...], Rung] = field(default_factory=dict)

    def described(self, rung: Rung) -> Rung:
        """`rung` with its measured quality and tokens per forward, where they are known."""
        return self.known.get(rung.policy(), rung)

    def expected_quality(self, rung: Rung, temperature: float) -> float | None:
        """The quality to promise: None where nothing was measured, or outside the calibrated range."""
        if self.temperature is None or temperature > self.temperature:
            return None
        return self.described(rung).expected_quality


def read_quality_map(path: str | Path, block_size: int) -> QualityMap:
    """Reads `ladder.json` and `quality.json` of a checkpoint directory. Raises CheckpointError on a bad file."""
    directory = Path(path)
    saved = read_json(directory / LADDER_FILE)
    curve = read_json(directory / CURVE_FILE)
    try:
        ladder = tuple(Rung.from_dict(entry) for entry in saved.get("rungs", ()))
        cells = [_rung_of_cell(cell) for cell in curve.get("cells", ()) if cell["split"] == "test"]
        temperature = float(saved.get("measured", {}).get("temperature", 0.0)) if ladder or cells else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: {LADDER_FILE} or {CURVE_FILE} has another form: {error!r}") from None
    known: dict[tuple[object, ...], Rung] = {rung.policy(): rung for rung in [*cells, *ladder]}
    measured = [rung for rung in known.values() if rung.is_diffusion and rung.block_length <= block_size]
    return QualityMap(ladder, _best_first(measured or _plain_scale(block_size)), temperature, known)


def budgets_for(block_length: int) -> tuple[Rung, ...]:
    """Unmeasured rungs of one block length, most steps first."""
    return tuple(diffusion(block_length, steps) for steps in reversed(BUDGETS) if steps <= block_length)


def _plain_scale(block_size: int) -> list[Rung]:
    return list(budgets_for(block_size))


def _best_first(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """By measured quality, then by share of a block's positions per step; unmeasured ones come last."""

    def worth(rung: Rung) -> tuple[float, float]:
        quality = -1.0 if rung.expected_quality is None else rung.expected_quality
        return (quality, rung.refinement_steps / rung.block_length)

    return tuple(sorted(rungs, key=worth, reverse=True))


def _rung_of_cell(cell: dict[str, Any]) -> Rung:
    rung = Rung.from_dict(cell)
    return replace(
        rung,
        decoding=Decoding(rung.decoding),
        expected_quality=round(cell["exact_match_low"], 4),
        expected_tokens_per_forward=cell["tokens_per_forward"],
    )
