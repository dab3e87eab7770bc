"""Random canvases, and the unmask rule as a plain loop over Python lists, written from the words of the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kernels.unmask import NEVER, NO_BOUND, NO_REMASK, Policies

MASK_ID = 100


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
    policies: Policies | None = None

    def arguments(self) -> list[Any]:
        """Copies, because the kernel writes in place."""
        tensors = [getattr(self, field.name).clone() for field in fields(self)[:-1]]
        return [*tensors, self.policies]


def random_case(seed: int, canvases: int, width: int, stops: int, policies: bool = False) -> Case:
    """Ragged canvases with ties between confidences, NaN, equal tokens and mixed thresholds; with `policies`, mixed
    ones of those too. Entropies are eighths, whose sums are exact in any order."""
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
        policies=_policies(draw, canvases, width) if policies else None,
    )


def _policies(draw: torch.Generator, canvases: int, width: int) -> Policies:
    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    entropy = (uniform(canvases, width) * 30).round() / 8
    entropy[uniform(canvases, width) < 0.05] = float("nan")
    return Policies(
        entropy=entropy,
        bound=torch.where(uniform(canvases) < 0.3, NO_BOUND, (uniform(canvases) * 40).round() / 8),
        standing=(uniform(canvases, width) * 10).round() / 10,
        remask=torch.where(uniform(canvases) < 0.3, NO_REMASK, (uniform(canvases) * 10).round() / 10),
        mask_id=MASK_ID,
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
    commit = set(slots[: max(math.ceil(len(slots) / steps), len(confident))])
    again: list[int] = []
    if case.policies is not None:
        known = case.policies.entropy[row].tolist()
        bound, remask = float(case.policies.bound[row]), float(case.policies.remask[row])
        unsure: list[int] = []
        for place in sorted((place for place in slots if not math.isnan(known[place])), key=lambda at: (known[at], at)):
            group = [known[at] for at in (*unsure, place)]
            if sum(group) - max(group) > bound:
                break
            unsure.append(place)
        commit |= set(unsure)
        standing = case.policies.standing[row].tolist()
        if steps > 1:
            again = [place for place in range(length) if not masked[place] and standing[place] < remask]
    for place in commit:
        canvas[place], masked[place] = candidate[place], False
    for place in again:
        canvas[place], masked[place] = MASK_ID, True

    first_stop = -1
    for place in range(length):
        if masked[place]:
            break
        if canvas[place] in stops:
            first_stop = place
            break
    left = sum(masked[:length])
    return Expected(canvas, masked, left, first_stop, left == 0 or first_stop >= 0)
