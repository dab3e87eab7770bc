"""The unmask rule over the canvases of one forward (`requests.md` section 1), on the kernel that does it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.decoding.canvas import steps_left
from engine.decoding.choice import Choice
from engine.packing import moved
from engine.sequence import Canvas, Sequence
from kernels.unmask import NEVER, NO_BOUND, NO_REMASK, Policies, Unmasked, unmask

if TYPE_CHECKING:
    from engine.decoding.head import Asked

Draft = tuple[Sequence, Canvas, list[int], int]
"""A sequence, its canvas, the canvas's wanted offsets, and the row of the choice where they start."""


class Canvases(Protocol):
    """What steps in a row are done to."""

    def commit(self, choice: Choice) -> None:
        """One step."""

    def next_step(self) -> Tensor:
        """Goes on to another one. Returns the tokens of the forward's wanted rows, int64 `[wanted]`, on the device."""


AnyCanvases = TypeVar("AnyCanvases", bound=Canvases)


class DeviceCanvases:
    """The open canvases of a forward on the device that chooses their tokens, through one step or several in a row.

    Nothing here waits for the device: `state` is what the host has to fetch, and `put_back` takes it.

    Attributes:
        ids: int64 `[canvases, width]`, their tokens by now.
    """

    def __init__(self, drafts: Seq[Draft], device: torch.device, mask_token_id: int) -> None:
        self._drafts = drafts
        self._mask_token_id = mask_token_id
        count = len(drafts)
        width = max(len(canvas.tokens) for _, canvas, _, _ in drafts)
        canvas_ids = np.zeros((count, width), dtype=np.int64)
        masked = np.zeros((count, width), dtype=bool)
        row_of = np.zeros((count, width), dtype=np.int64)  # of the choice; any where none is wanted
        for place, (_, canvas, wanted, row) in enumerate(drafts):
            canvas_ids[place, : len(canvas.tokens)] = canvas.tokens
            masked[place, : len(canvas.masked)] = canvas.masked
            row_of[place, wanted] = np.arange(row, row + len(wanted))
        thresholds = [
            NEVER if sequence.rung.threshold is None else sequence.rung.threshold for sequence, _, _, _ in drafts
        ]
        (
            self.ids,
            self._masked,
            self._rows,
            self._places,
            self._length,
            self._steps_left,
            self._threshold,
            self._stop_ids,
        ) = moved(
            [
                torch.from_numpy(canvas_ids),
                torch.from_numpy(masked),
                torch.from_numpy(row_of),
                torch.from_numpy(masked.ravel().nonzero()[0]),
                torch.tensor([len(canvas.tokens) for _, canvas, _, _ in drafts]),
                torch.tensor([steps_left(sequence, canvas) for sequence, canvas, _, _ in drafts]),
                torch.tensor(thresholds, dtype=torch.float32),
                _stop_ids([sequence for sequence, _, _, _ in drafts]),
            ],
            device,
        )
        self._known: Unmasked | None = None
        self._policies = _policies(drafts, width, device)

    def commit(self, choice: Choice) -> None:
        """One step: commits what the rule wants of the tokens chosen for the slots that were masked at first."""
        self._known = unmask(
            self.ids,
            self._masked,
            choice.tokens[self._rows],
            choice.confidence[self._rows],
            self._length,
            self._steps_left,
            self._threshold,
            self._stop_ids,
            self._asked_of(choice),
        )

    def _asked_of(self, choice: Choice) -> Policies | None:
        """What the forward has found of each slot, for the policies."""
        if self._policies is None:
            return None
        judged, bound, remask = self._policies
        none = torch.zeros_like(choice.confidence)
        entropy = none if choice.entropy is None else choice.entropy
        standing = choice.standing
        if standing is None:
            standing = none if choice.given_logprob is None else choice.given_logprob.exp()
        return Policies(
            entropy=entropy[self._rows],
            bound=bound,
            standing=torch.where(judged, standing[self._rows], 1.0),
            remask=remask,
            mask_id=self._mask_token_id,
        )

    def next_step(self) -> Tensor:
        """Goes on to another step of the budget. Returns the tokens by now of the slots that were masked at first,
        canvas after canvas, int64 `[slots]`."""
        self._steps_left -= 1
        return self.ids.view(-1)[self._places]

    def tokens(self) -> Tensor:
        """The tokens by now of all slots, canvas after canvas, int64 `[slots]`."""
        width = self.ids.shape[1]
        slots = [np.arange(len(canvas.tokens)) + place * width for place, (_, canvas, _, _) in enumerate(self._drafts)]
        (inside,) = moved([torch.from_numpy(np.concatenate(slots))], self.ids.device)
        return self.ids.view(-1)[inside]

    def state(self) -> list[Tensor]:
        """What has become of the canvases. Raises RuntimeError before the first step."""
        if self._known is None:
            raise RuntimeError("no step was committed")
        return [self.ids, self._masked, self._known.masks_left, self._known.first_stop]

    def put_back(self, state: Seq[Tensor]) -> None:
        """Writes `state`, which was fetched, into the sequences' own canvases."""
        ids, flags, *known = state
        left, first_stop = (values.tolist() for values in known)
        for place, (tokens, hidden) in enumerate(zip(ids.tolist(), flags.tolist(), strict=True)):
            canvas = self._drafts[place][1]
            size = len(canvas.tokens)
            if self._policies is not None:
                back = zip(canvas.masked, hidden[:size], strict=True)
                canvas.taken_back.update(offset for offset, (before, now) in enumerate(back) if now and not before)
            canvas.tokens = tokens[:size]
            canvas.masked = hidden[:size]
            canvas.masks_left = left[place]
            canvas.first_stop = first_stop[place]


@dataclass(slots=True)
class Drafting(Generic[AnyCanvases]):
    """Canvases through several steps in a row, and what the head is asked about their slots."""

    canvases: AnyCanvases
    asked: Asked


def _policies(drafts: Seq[Draft], width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Which slots are judged, bool `[canvases, width]`, and the policies' numbers, float32 `[canvases]`; None where no
    canvas has a policy."""
    rungs = [sequence.rung for sequence, _, _, _ in drafts]
    if not any(rung.has_policies for rung in rungs):
        return None
    judged = np.zeros((len(drafts), width), dtype=bool)
    for place, (sequence, canvas, wanted, _) in enumerate(drafts):
        if sequence.rung.remask is not None:
            judged[place, wanted] = [not canvas.masked[offset] for offset in wanted]
    bounds = [NO_BOUND if rung.entropy_bound is None else rung.entropy_bound for rung in rungs]
    remasks = [NO_REMASK if rung.remask is None else rung.remask for rung in rungs]
    numbers = [torch.tensor(values, dtype=torch.float32) for values in (bounds, remasks)]
    there, bound, remask = moved([torch.from_numpy(judged), *numbers], device)
    return there, bound, remask


def unmask_canvases(drafts: Seq[Draft], choice: Choice, mask_token_id: int) -> None:
    """Commits tokens in every canvas, in place, where the host has chosen them."""
    open_drafts = []
    for draft in drafts:
        sequence, canvas, _, _ = draft
        # The one step of most drafts needs no ranking: all masks go, and AR judges the result.
        if steps_left(sequence, canvas) == 1 and not sequence.rung.is_diffusion:
            _fill(draft, choice)
        else:
            open_drafts.append(draft)
    if open_drafts:
        canvases = DeviceCanvases(open_drafts, choice.tokens.device, mask_token_id)
        canvases.commit(choice)
        canvases.put_back(canvases.state())


def _fill(draft: Draft, choice: Choice) -> None:
    """The unmask rule for the last step of a budget: every mask is committed."""
    _, canvas, offsets, row = draft
    for offset, token in zip(offsets, choice.tokens[row : row + len(offsets)].tolist(), strict=True):
        canvas.tokens[offset] = token
    canvas.masked = [False] * len(canvas.tokens)
    canvas.masks_left = 0


def _stop_ids(sequences: list[Sequence]) -> torch.Tensor:
    """Stop ids `[sequences, most]` filled up with -1; drafts end nowhere, because AR judges them first."""
    ids = [sorted(sequence.limits.stop_ids) if sequence.rung.is_diffusion else [] for sequence in sequences]
    most = max(len(row) for row in ids)
    return torch.tensor([row + [-1] * (most - len(row)) for row in ids], dtype=torch.int64).view(len(ids), most)
