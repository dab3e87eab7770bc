"""What is known about a checkpoint's quality: the ladder and the measured curve beside it (`stepdial calibrate`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.identity import check_identity, checkpoint_identity, quantization_of
from engine.checkpoint.json_file import read_json
from engine.errors import CheckpointError
from engine.plan import Rung, diffusion

LADDER_FILE = "ladder.json"
CURVE_FILE = "quality.json"
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Policy = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class QualityMap:
    """A checkpoint's rungs with what was measured of them.

    Attributes:
        ladder: best first; empty where the checkpoint has none.
        diffusion: every measured diffusion rung (or a plain scale of budgets where nothing is), best first: what a
            request that pins `decoding: diffusion` and states an SLO chooses from.
        temperature: the highest temperature that the rungs' own `expected_quality` holds for; None without a
            calibration.
        known: measured rungs by policy, at that temperature.
        above: per higher temperature that was measured, the quality of each policy measured there.
    """

    ladder: tuple[Rung, ...] = ()
    diffusion: tuple[Rung, ...] = ()
    temperature: float | None = None
    known: Mapping[Policy, Rung] = field(default_factory=dict)
    above: Mapping[float, Mapping[Policy, float]] = field(default_factory=dict)

    def described(self, rung: Rung) -> Rung:
        """`rung` with its measured quality and tokens per forward, where they are known."""
        return self.known.get(rung.policy(), rung)

    def expected_quality(self, rung: Rung, temperature: float) -> float | None:
        """The quality to promise: what was measured at the nearest temperature that is not below the request's; None
        where nothing was, so also outside the calibrated range."""
        if self.temperature is None:
            return None
        if temperature <= self.temperature:
            return self.described(rung).expected_quality
        nearest = min((measured for measured in self.above if measured >= temperature), default=None)
        return None if nearest is None else self.above[nearest].get(rung.policy())


def read_quality_map(
    path: str | Path, block_size: int, quantization: str = "none", calibration: str | Path | None = None
) -> QualityMap:
    """Reads `ladder.json` and `quality.json` of a checkpoint directory, or of the folder `calibration`; they count for
    the `quantization` of the weights that they were measured with alone.

    Raises CheckpointError on a bad file, on one that was measured on another checkpoint, and where a folder is named
    and has no ladder.
    """
    directory = Path(calibration or path).resolve()
    if calibration is not None and not (directory / LADDER_FILE).is_file():
        raise CheckpointError(f"calibration is {str(calibration)!r}, which has no {LADDER_FILE}")
    saved = read_json(directory / LADDER_FILE)
    curve = read_json(directory / CURVE_FILE)
    _check_belongs(Path(path), {directory / LADDER_FILE: saved, directory / CURVE_FILE: curve})
    try:
        saved, curve = (data if quantization_of(data) == quantization else {} for data in (saved, curve))
        ladder = tuple(Rung.from_dict(entry) for entry in saved.get("rungs", ()))
        cells = [cell for cell in curve.get("cells", ()) if cell["split"] == "test"]
        coldest = min((float(cell["temperature"]) for cell in cells), default=0.0)
        temperature = float(saved.get("measured", {}).get("temperature", coldest)) if ladder or cells else None
        curve_rungs = [_rung_of_cell(cell) for cell in cells if cell["temperature"] == temperature]
        above = _above(cells, saved.get("rungs", ()), temperature or 0.0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory}: {LADDER_FILE} or {CURVE_FILE} has another form: {error!r}") from None
    known: dict[Policy, Rung] = {rung.policy(): rung for rung in [*curve_rungs, *ladder]}
    measured = [rung for rung in known.values() if rung.is_diffusion and rung.block_length <= block_size]
    return QualityMap(ladder, _best_first(measured or budgets_for(block_size)), temperature, known, above)


def budgets_for(block_length: int) -> tuple[Rung, ...]:
    """Unmeasured rungs of one block length, most steps first."""
    return tuple(diffusion(block_length, steps) for steps in reversed(BUDGETS) if steps <= block_length)


def _check_belongs(checkpoint: Path, files: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises CheckpointError where a file that is there was not measured on this checkpoint."""
    present = {name: data for name, data in files.items() if data}
    if not present:
        return
    identity = checkpoint_identity(checkpoint)
    for file, data in present.items():
        check_identity(checkpoint, data, file, identity)


def _best_first(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """By measured quality, then by share of a block's positions per step; unmeasured ones come last."""

    def worth(rung: Rung) -> tuple[float, float]:
        quality = -1.0 if rung.expected_quality is None else rung.expected_quality
        return (quality, rung.refinement_steps / rung.block_length)

    return tuple(sorted(rungs, key=worth, reverse=True))


def _rung_of_cell(cell: Mapping[str, Any]) -> Rung:
    return replace(
        Rung.from_dict(dict(cell)),
        expected_quality=float(cell["quality_low"]),
        expected_tokens_per_forward=float(cell["tokens_per_forward"]),
    )


def _above(
    cells: Iterable[Mapping[str, Any]], ladder: Iterable[Mapping[str, Any]], temperature: float
) -> dict[float, dict[Policy, float]]:
    """Lower bounds measured above `temperature`; the ladder's, fitted and pooled, before those of single cells."""
    found: dict[float, dict[Policy, float]] = {}
    for cell in cells:
        if cell["temperature"] > temperature:
            policy = Rung.from_dict(dict(cell)).policy()
            found.setdefault(float(cell["temperature"]), {})[policy] = float(cell["quality_low"])
    for entry in ladder:
        policy = Rung.from_dict(dict(entry)).policy()
        for measured, quality in entry.get("quality_at", {}).items():
            found.setdefault(float(measured), {})[policy] = float(quality["low"])
    return found
