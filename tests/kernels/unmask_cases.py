"""Random canvases, and the unmask rule as a plain loop over Python lists, written from the words of the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kernels.unmask import NEVER


@dataclass
class Case:
    """Arguments of `unmask`, in its order."""

    canvas: Tensor
    masked: Tensor
    candidate: Tensor
    confidence: Tensor
    length: Tensor
    steps_left: Tensor
    threshold: Tensor
    stop_ids: Tensor

    def arguments(self) -> list[Tensor]:
        """Copies, because the kernel writes in place."""
        return [getattr(self, field.name).clone() for field in fields(self)]


def random_case(seed: int, canvases: int, width: int, stops: int) -> Case:
    """Ragged canvases with ties between confidences, NaN, equal tokens and mixed thresholds."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    levels = int(integers(2, 40, 1))
    confidence = (uniform(canvases, width) * levels).round() / levels
    if seed % 5 == 0:
        confidence[uniform(canvases, width) < 0.05] = float("nan")
    threshold = torch.where(uniform(canvases) < 0.4, NEVER, (uniform(canvases) * levels).round() / levels)
    return Case(
        canvas=integers(0, 20, canvases, width),
        masked=uniform(canvases, width) < uniform(canvases, 1),
        candidate=integers(0, 20, canvases, width),
        confidence=confidence,
        length=integers(1, width + 1, canvases),
        steps_left=integers(1, width + 2, canvases),
        threshold=threshold,
        stop_ids=integers(-1, 20, canvases, stops),
    )


@dataclass
class Expected:
    """What the rule says of one canvas."""

    canvas: list[int]
    masked: list[bool]
    masks_left: int
    first_stop: int
    done: bool


def expected(case: Case, row: int) -> Expected:
    """The rule for one canvas."""
    canvas, masked = case.canvas[row].tolist(), case.masked[row].tolist()
    candidate = case.candidate[row].tolist()
    confidence = [0.0 if math.isnan(value) else value for value in case.confidence[row].tolist()]
    length, steps = int(case.length[row]), int(case.steps_left[row])
    threshold = float(case.threshold[row])
    stops = {token for token in case.stop_ids[row].tolist() if token >= 0}

    slots = [place for place in range(length) if masked[place]]
    slots.sort(key=lambda place: (-confidence[place], place))
    confident = [place for place in slots if confidence[place] >= threshold]
    for place in slots[: max(math.ceil(len(slots) / steps), len(confident))]:
        canvas[place], masked[place] = candidate[place], False

    first_stop = -1
    for place in range(length):
        if masked[place]:
            break
        if canvas[place] in stops:
            first_stop = place
            break
    left = sum(masked[:length])
    return Expected(canvas, masked, left, first_stop, left == 0 or first_stop >= 0)
