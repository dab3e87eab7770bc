"""What a calibration is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.calibration.prompts import EvaluationError

SHIPPED = Path(__file__).parents[1] / "tiny" / "checkpoint"
SHIPPED_NAME = "stepdial-tiny"
MOST_LOAD = 4096
"""What one engine may hold (`EngineConfig.max_sequences`)."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What to measure, and how much of it.

    Attributes:
        model: checkpoint directory. prompts: a user's JSON lines; None = stepdial-tiny's own tasks.
        built_in_tasks: use those tasks for a checkpoint that is not the shipped one.
        output: folder of the reports, and of the rows (`cells/`).
        test_prompts, calibration_prompts, selection_prompts: most prompts of each split.
        sampled_prompts, samples: prompts and answers per prompt above temperature 0.
        load_prompts: prompts whose cost is measured at every load but the largest, 8 per unit of load at least.
        loads: prompts at the same time; quality is measured at the largest. temperatures: 0 and others.
        workers: processes. minutes: no answer is begun after so long; None = no bound. install: also write beside the
            checkpoint. command: how to make it again, for the report.
    """

    model: Path = SHIPPED
    prompts: Path | None = None
    built_in_tasks: bool = False
    output: Path = Path("calibration")
    test_prompts: int = 1000
    calibration_prompts: int = 500
    selection_prompts: int = 500
    sampled_prompts: int = 250
    samples: int = 2
    load_prompts: int = 24
    loads: tuple[int, ...] = (1, 8, 64)
    temperatures: tuple[float, ...] = (0.0, 0.7)
    max_tokens: int = 288
    dtype: str = "float32"
    quantization: str = "none"
    workers: int = 2
    threads: int = 1
    minutes: float | None = None
    install: bool = True
    command: str = "stepdial calibrate"

    def __post_init__(self) -> None:
        if 0.0 not in self.temperatures or not all(0 <= value <= 2 for value in self.temperatures):
            raise EvaluationError(f"temperatures are {list(self.temperatures)}; allowed: 0 to 2, and 0 among them")
        if not self.loads or not all(1 <= load <= MOST_LOAD for load in self.loads):
            raise EvaluationError(f"loads are {list(self.loads)}; allowed: 1 to {MOST_LOAD}")
        if len(set(self.loads)) < len(self.loads):
            raise EvaluationError(f"loads are {list(self.loads)}; allowed: each once")

    @property
    def name(self) -> str:
        """The model's name in the files: that of its directory."""
        return SHIPPED_NAME if self.model.resolve() == SHIPPED else self.model.resolve().name
