"""The cells of a calibration: which rungs are measured, on which split, at which temperature and load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from engine.plan import AR, Decoding, Rung, diffusion, self_speculation
from engine.request import GenerationOptions

Split = Literal["calibration", "selection", "test"]
SPLITS: tuple[Split, ...] = ("calibration", "selection", "test")

BUDGETS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99)
TOLERANCES = (0.5, 0.1)
USUAL_THRESHOLD = 0.9
LONGEST_MEASURED = 32


@dataclass(frozen=True, slots=True)
class Cell:
    """A rung measured on the first `prompts` prompts of a split.

    Attributes:
        load: prompts answered at the same time. samples: answers per prompt, each with a seed of its own.
    """

    rung: Rung
    split: Split
    load: int
    prompts: int
    temperature: float = 0.0
    samples: int = 1

    @property
    def name(self) -> str:
        """The name of its file, without the number of prompts: a longer run goes on where a short one ended."""
        rung = self.rung
        parts = [self.split, f"T{self.temperature:g}", f"load{self.load}", rung.decoding.value, f"n{rung.block_length}"]
        parts.append(f"k{rung.refinement_steps}")
        if rung.threshold is not None:
            parts.append(f"t{rung.threshold:g}")
        if rung.tolerance is not None:
            parts.append(f"audit{rung.tolerance:g}")
        return "-".join(parts)

    @property
    def answers(self) -> int:
        return self.prompts * self.samples

    def options(self, sample: int, prompt: int, max_tokens: int) -> GenerationOptions:
        """Request fields that pin the rung for one answer.

        On the test split the audit `score` reads the AR log-probability, which changes no token but costs logits; the
        other splits price the rung as it is served.
        """
        rung = self.rung
        score = self.split == "test"
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            "max_tokens": max_tokens,
            "decoding": rung.decoding.value,
            "seed": prompt * 1000 + sample,
        }
        if rung.decoding is Decoding.AR:
            return GenerationOptions(**fields, audit="score" if score else None)
        fields["block_length"] = rung.block_length
        if rung.is_diffusion:
            fields |= {"refinement_steps": rung.refinement_steps, "threshold": rung.threshold}
            fields["audit"] = "score" if score and rung.audit == "off" else rung.audit
        return GenerationOptions(**fields)


def block_lengths(block_size: int) -> tuple[int, ...]:
    """Measured block lengths: 4, 8, 16, 32 as far as the model's own reaches, and the model's own."""
    return tuple(sorted({length for length in (4, 8, 16, 32) if length <= block_size} | {block_size}))


def linear_block(block_size: int) -> int:
    """The block length on which forwards are checked to be linear in the step budget."""
    return LONGEST_MEASURED if block_size >= LONGEST_MEASURED else block_size


def self_speculation_rungs(block_size: int) -> list[Rung]:
    """Self-speculation over every measured block length."""
    return [self_speculation(length) for length in block_lengths(block_size)]


def bar_rungs(block_size: int) -> list[Rung]:
    """What a report is looked at for first: AR, self-speculation, the budgets of the longest block, full schedules."""
    longest = linear_block(block_size)
    lengths = block_lengths(block_size)
    rungs = [AR, *self_speculation_rungs(block_size)]
    rungs += [diffusion(longest, steps) for steps in BUDGETS if steps <= longest]
    rungs += [diffusion(length, length) for length in lengths]
    return list(dict.fromkeys(rungs))


def curve_rungs(block_size: int) -> list[Rung]:
    """Every rung of the curve: those of the bar first, then thresholds, then the other budgets."""
    lengths = block_lengths(block_size)
    dense = [length for length in (linear_block(block_size), 8) if length in lengths]
    thresholds = [diffusion(length, None, USUAL_THRESHOLD) for length in lengths]
    thresholds += [diffusion(length, None, value) for value in THRESHOLDS for length in dense]
    budgets = [diffusion(length, steps) for length in reversed(lengths) for steps in BUDGETS if steps <= length]
    return list(dict.fromkeys([*bar_rungs(block_size), *thresholds, *budgets]))


def candidate_rungs(block_size: int) -> list[Rung]:
    """Rungs that may enter a ladder: exact ones, small budgets with and without early commit, and tolerances.

    A budget of more than 8 steps costs more than self-speculation and is no better (`requests.md` section 5: on paper
    from about 10 steps on), so none is tried.
    """
    lengths = [length for length in block_lengths(block_size) if length >= min(8, block_size)]
    rungs = [AR, *self_speculation_rungs(block_size)]
    rungs += [diffusion(length, steps) for length in lengths for steps in (1, 2, 4)]
    rungs += [diffusion(length, steps, USUAL_THRESHOLD) for length in lengths for steps in (2, 4, 8)]
    rungs += [diffusion(length, 1, None, tolerance) for length in lengths for tolerance in TOLERANCES]
    return list(dict.fromkeys(rungs))


def sampled_rungs(block_size: int, ladder: list[Rung]) -> list[Rung]:
    """Rungs measured above temperature 0: AR, self-speculation over 16, and the ladder."""
    return list(dict.fromkeys([AR, self_speculation(min(16, block_size)), *ladder]))


def describe(rung: Rung) -> str:
    """A rung in a few words, as reports show it."""
    if rung.decoding is Decoding.AR:
        return "AR"
    if rung.decoding is Decoding.SELF_SPECULATION:
        return f"self-speculation {rung.block_length}"
    steps = "1 step" if rung.refinement_steps == 1 else f"{rung.refinement_steps} steps"
    threshold = "" if rung.threshold is None else f", threshold {rung.threshold:g}"
    audit = "" if rung.audit == "off" else f", audit {rung.audit}"
    return f"diffusion {rung.block_length}, {steps}{threshold}{audit}"
