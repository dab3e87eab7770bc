"""The unmask rule over the canvases of one forward (`requests.md` section 1), on the kernel that does it."""

from __future__ import annotations

import numpy as np
import torch

from engine.decoding.canvas import steps_left
from engine.decoding.choice import Choice
from engine.packing import fetched, moved
from engine.sequence import Canvas, Sequence
from kernels.unmask import NEVER, unmask

Draft = tuple[Sequence, Canvas, list[int], int]
"""A sequence, its canvas, the canvas's masked offsets, and the row of the choice where they start."""


def unmask_canvases(drafts: list[Draft], choice: Choice) -> None:
    """Commits tokens in every canvas, in place."""
    open_drafts = []
    for draft in drafts:
        sequence, canvas, _, _ = draft
        # The one step of most drafts needs no ranking: all masks go, and AR judges the result.
        # On a GPU every canvas fetched by itself would be one more wait.
        alone = steps_left(sequence, canvas) == 1 and not sequence.rung.is_diffusion
        if alone and not choice.tokens.is_cuda:
            _fill(draft, choice)
        else:
            open_drafts.append(draft)
    if open_drafts:
        _rank_and_commit(open_drafts, choice)


def _fill(draft: Draft, choice: Choice) -> None:
    """The unmask rule for the last step of a budget: every mask is committed."""
    _, canvas, offsets, row = draft
    for offset, token in zip(offsets, choice.tokens[row : row + len(offsets)].tolist(), strict=True):
        canvas.tokens[offset] = token
    canvas.masked = [False] * len(canvas.tokens)
    canvas.masks_left = 0


def _rank_and_commit(drafts: list[Draft], choice: Choice) -> None:
    count = len(drafts)
    width = max(len(canvas.tokens) for _, canvas, _, _ in drafts)
    canvas_ids = np.zeros((count, width), dtype=np.int64)
    masked = np.zeros((count, width), dtype=bool)
    row_of = np.zeros((count, width), dtype=np.int64)  # of the choice; any where there is no mask
    for place, (_, canvas, masks, row) in enumerate(drafts):
        canvas_ids[place, : len(canvas.tokens)] = canvas.tokens
        masked[place, : len(canvas.masked)] = canvas.masked
        row_of[place, masks] = np.arange(row, row + len(masks))
    thresholds = [NEVER if sequence.rung.threshold is None else sequence.rung.threshold for sequence, _, _, _ in drafts]
    ids, flags, rows, length, steps, threshold, stop_ids = moved(
        [
            torch.from_numpy(canvas_ids),
            torch.from_numpy(masked),
            torch.from_numpy(row_of),
            torch.tensor([len(canvas.tokens) for _, canvas, _, _ in drafts]),
            torch.tensor([steps_left(sequence, canvas) for sequence, canvas, _, _ in drafts]),
            torch.tensor(thresholds, dtype=torch.float32),
            _stop_ids([sequence for sequence, _, _, _ in drafts]),
        ],
        choice.tokens.device,
    )
    result = unmask(ids, flags, choice.tokens[rows], choice.confidence[rows], length, steps, threshold, stop_ids)
    ids, flags, *known = fetched([ids, flags, result.masks_left, result.first_stop])
    left, first_stop = (values.tolist() for values in known)
    for place, (tokens, hidden) in enumerate(zip(ids.tolist(), flags.tolist(), strict=True)):
        canvas = drafts[place][1]
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
