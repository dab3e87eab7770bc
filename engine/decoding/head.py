"""Choosing tokens where kernels run: what the head is asked about each wanted row, and its answer.

The kernels see every row once and keep no logits (`kernels/denoise_head.py`). Rows with top-k or top-p need all of
theirs: they take `engine/sampling.py`, a few rows at a time, which waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.decoding.choice import Choice, RowBlock, banned_tokens, random_rows
from engine.packing import moved
from engine.sampling import RandomRows, pick
from kernels.row_statistics import RowNoise, RowRules

if TYPE_CHECKING:
    from engine.model.transformer import Transformer

STEP_BIT = 8
"""Where the step begins in `RowNoise.places`."""
LOGIT_ROWS = 64
"""Rows whose logits are held at a time: 32 MiB in float32 for a vocabulary of 131,072."""


@dataclass(slots=True)
class Asked:
    """About the wanted rows of a forward: `rules` for all of them, and the rows with top-k or top-p, None without."""

    rules: RowRules
    filtered: RandomRows | None

    def to(self, device: torch.device) -> Asked:
        """The same on a device, moved by one copy."""
        return self.with_tensors(moved(self.tensors(), device))

    def tensors(self) -> list[Tensor]:
        """All tensors, in one order."""
        parts = [part for part in (self.rules.noise, self.filtered) if part is not None]
        own = [getattr(part, field.name) for part in parts for field in fields(part)]
        return [self.rules.banned, self.rules.given, *own]

    def next_step(self) -> None:
        """Asks the same of the canvases' next step, whose noise is another (`requests.md` section 3); in place."""
        if self.rules.noise is not None:
            self.rules.noise.places += 1 << STEP_BIT

    def with_tensors(self, tensors: Seq[Tensor]) -> Asked:
        """The same with other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        rules = RowRules(self.rules.mask_id, next(rest), next(rest))
        if self.rules.noise is not None:
            rules.noise = RowNoise(*(next(rest) for _ in fields(RowNoise)))
        return Asked(rules, None if self.filtered is None else RandomRows(*rest))


def ask(blocks: list[RowBlock], mask_token_id: int) -> Asked:
    """What the rows that `blocks` describe, in order, are asked; on the CPU."""
    rows = sum(block.rows for block in blocks)
    noise, filtered = None, None
    random = random_rows(blocks)
    if random is not None:
        has_filter = (random.top_k > 0) | (random.top_p < 1)
        if bool(has_filter.any()):
            filtered = _part(random, has_filter)
        if not bool(has_filter.all()):
            noise = _noise(_part(random, ~has_filter), rows)
    # A thousand numbers: NumPy reads them four times as fast as torch.
    given = np.fromiter(chain.from_iterable(block.given or [-1] * block.rows for block in blocks), np.int64, rows)
    rules = RowRules(mask_token_id, _banned_table(blocks, rows), torch.from_numpy(given), noise)
    return Asked(rules, filtered)


@torch.inference_mode()
def head_choice(model: Transformer, hidden: Tensor, rows: Tensor, asked: Asked) -> Choice:
    """A token for each of `rows` `[r]` of the hidden states `[tokens, hidden]`, and what the audit wants to know."""
    known = model.statistics(hidden, rows, asked.rules)
    choice = Choice(known.tokens, known.confidence, known.given_logprob, known.given_ratio, known.entropy)
    for part in _a_few_at_a_time(asked.filtered):
        among, part.rows = part.rows, torch.arange(len(part.rows), device=rows.device)
        banned = asked.rules.banned[among]
        places, columns = (banned >= 0).nonzero(as_tuple=True)
        logits = model.logits(hidden, rows[among]).float()
        pairs = (places, banned[places, columns]) if len(places) else None
        choice.tokens[among], choice.confidence[among] = pick(logits, asked.rules.mask_id, part, pairs)
    return choice


def _noise(random: RandomRows, rows: int) -> RowNoise:
    """The noise of all rows, those at temperature 0 included."""
    noise = RowNoise(
        temperature=torch.zeros(rows),
        tempered=torch.zeros(rows, dtype=torch.bool),
        seeds=torch.zeros(rows, dtype=torch.int64),
        positions=torch.zeros(rows, dtype=torch.int32),
        places=torch.zeros(rows, dtype=torch.int32),
        choices=torch.zeros(rows, dtype=torch.int32),
    )
    noise.temperature[random.rows] = random.temperature
    noise.tempered[random.rows] = random.tempered
    noise.seeds[random.rows] = random.seeds
    noise.positions[random.rows] = random.positions.int()
    noise.places[random.rows] = (random.stages | random.steps << STEP_BIT).int()
    noise.choices[random.rows] = random.choices.int()
    return noise


def _banned_table(blocks: list[RowBlock], rows: int) -> Tensor:
    """Banned ids `[rows, most]`, filled up with -1."""
    banned = banned_tokens(blocks)
    if banned is None:
        return torch.empty(rows, 0, dtype=torch.int64)
    of_row: list[list[int]] = [[] for _ in range(rows)]
    for row, token in zip(*(values.tolist() for values in banned), strict=True):
        of_row[row].append(token)
    most = max(len(ids) for ids in of_row)
    return torch.tensor([ids + [-1] * (most - len(ids)) for ids in of_row], dtype=torch.int64)


def _a_few_at_a_time(random: RandomRows | None) -> list[RandomRows]:
    if random is None:
        return []
    return [_part(random, slice(first, first + LOGIT_ROWS)) for first in range(0, len(random.rows), LOGIT_ROWS)]


def _part(random: RandomRows, rows: Tensor | slice) -> RandomRows:
    return RandomRows(**{field.name: getattr(random, field.name)[rows] for field in fields(random)})
