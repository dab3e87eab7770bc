"""The unmask rule over the canvases of one forward (`requests.md` section 1), on the kernel that does it."""

from __future__ import annotations

import numpy as np
import torch

from engine.decoding.canvas import steps_left
from engine.decoding.choice import Choice
from engine.sequence import Sequence
from kernels.unmask import NEVER, unmask


def unmask_canvases(drafts: list[tuple[Sequence, list[int], int]], choice: Choice) -> None:
    """Commits tokens in every canvas, in place.

    Args:
        drafts: per sequence its masked offsets and the row of `choice` where they start.
    """
    canvases = [sequence.canvas for sequence, _, _ in drafts if sequence.canvas is not None]
    width = max(len(canvas.tokens) for canvas in canvases)
    count = len(canvases)
    canvas_ids = np.zeros((count, width), dtype=np.int64)
    masked = np.zeros((count, width), dtype=bool)
    for place, canvas in enumerate(canvases):
        canvas_ids[place, : len(canvas.tokens)] = canvas.tokens
        masked[place, : len(canvas.masked)] = canvas.masked
    places = torch.from_numpy(np.repeat(np.arange(count), [len(offsets) for _, offsets, _ in drafts]))
    offsets = torch.tensor([offset for _, offsets, _ in drafts for offset in offsets])
    rows = torch.from_numpy(np.concatenate([np.arange(row, row + len(offsets)) for _, offsets, row in drafts]))
    candidate = torch.zeros(count, width, dtype=torch.int64)
    confidence = torch.zeros(count, width, dtype=torch.float32)
    candidate[places, offsets] = choice.tokens[rows]
    confidence[places, offsets] = choice.confidence[rows]
    ids, flags = torch.from_numpy(canvas_ids), torch.from_numpy(masked)
    sequences = [sequence for sequence, _, _ in drafts]
    result = unmask(
        ids,
        flags,
        candidate,
        confidence,
        length=torch.tensor([len(canvas.tokens) for canvas in canvases]),
        steps_left=torch.tensor(
            [steps_left(sequence, canvas) for sequence, canvas in zip(sequences, canvases, strict=True)]
        ),
        threshold=torch.tensor(
            [NEVER if sequence.rung.threshold is None else sequence.rung.threshold for sequence in sequences],
            dtype=torch.float32,
        ),
        stop_ids=_stop_ids(sequences),
    )
    left, first_stop = result.masks_left.tolist(), result.first_stop.tolist()
    for place, (tokens, hidden) in enumerate(zip(ids.tolist(), flags.tolist(), strict=True)):
        canvas = canvases[place]
        size = len(canvas.tokens)
        canvas.tokens = tokens[:size]
        canvas.masked = hidden[:size]
        canvas.masks_left = left[place]
        canvas.first_stop = first_stop[place]


def _stop_ids(sequences: list[Sequence]) -> torch.Tensor:
    """Stop ids `[sequences, most]` filled up with -1; drafts end nowhere, because AR judges them first."""
    ids = [sorted(sequence.limits.stop_ids) if sequence.rung.is_diffusion else [] for sequence in sequences]
    most = max(len(row) for row in ids)
    return torch.tensor([row + [-1] * (most - len(row)) for row in ids], dtype=torch.int64).view(len(ids), most)
