"""Choosing tokens for all wanted rows of a forward at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.noise import Stage, seed_bits
from engine.sampling import RandomRows, pick
from engine.sequence import Sequence


@dataclass(slots=True)
class RowBlock:
    """Consecutive wanted rows of one sequence.

    Attributes:
        first_position: absolute position of the token that offset 0 chooses; `offsets` count from it.
        stage, step: where the noise comes from (`requests.md` section 3).
        given: for an audit or remask, the token that each row is to judge besides, -1 for none; empty for none at all.
    """

    sequence: Sequence
    first_position: int
    offsets: list[int]
    stage: Stage
    step: int
    given: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.offsets)


@dataclass(slots=True)
class Choice:
    """What was chosen for every row; tensors `[rows]`.

    Attributes:
        tokens: int64. confidence: float32, the probability of each token.
        given_logprob, given_ratio: float32, of the rows' given tokens, log p and log p - log p(best); both None where
            logits are at hand to find them from.
        entropy: float32, of the rows' softmax; None where nobody asks for it.
        standing: float32, of a draft's rows the probability of the given token, where that is not to be found from
            `given_logprob`; None where nobody asks for it.
    """

    tokens: Tensor
    confidence: Tensor
    given_logprob: Tensor | None = None
    given_ratio: Tensor | None = None
    entropy: Tensor | None = None
    standing: Tensor | None = None

    def of_looks(self) -> list[Tensor]:
        """What the host wants to know of the rows of looks: the arguments of another choice."""
        given = [values for values in (self.given_logprob, self.given_ratio) if values is not None]
        return [self.tokens, self.confidence, *given]


def choose(logits: Tensor, blocks: list[RowBlock], mask_token_id: int) -> Choice:
    """A token for every row.

    Args:
        logits: float32 `[rows, vocab]`; `blocks` describe its rows in order.
    """
    if logits.shape[0] == 0:
        return Choice(torch.empty(0, dtype=torch.int64), torch.empty(0))
    tokens, confidence = pick(logits, mask_token_id, random_rows(blocks), banned_tokens(blocks))
    denoised: list[tuple[RowBlock, int]] = []
    if any(block.sequence.rung.has_policies for block in blocks):
        denoised = [(block, first) for block, first in _with_rows(blocks) if block.stage is Stage.DENOISE]
    return Choice(tokens, confidence, entropy=_entropies(logits, denoised), standing=_standing(logits, denoised))


def _entropies(logits: Tensor, denoised: list[tuple[RowBlock, int]]) -> Tensor | None:
    """Of the rows of blocks with an entropy bound, 0 of others; row by row, so that no row's bits depend on others."""
    bounded = [(block, first) for block, first in denoised if block.sequence.rung.entropy_bound is not None]
    if not bounded:
        return None
    entropy = torch.zeros(len(logits))
    for block, first in bounded:
        for row in range(first, first + block.rows):
            entropy[row] = torch.special.entr(logits[row].softmax(-1)).sum()
    return entropy


def _standing(logits: Tensor, denoised: list[tuple[RowBlock, int]]) -> Tensor | None:
    """The probability of the tokens that drafts have settled, 1 elsewhere."""
    judged = [(block, first) for block, first in denoised if block.given]
    if not judged:
        return None
    standing = torch.ones(len(logits))
    for block, first in judged:
        rows = slice(first, first + block.rows)
        given = torch.tensor(block.given)
        probabilities = logits[rows].softmax(-1).gather(1, given.clamp(min=0)[:, None])[:, 0]
        standing[rows] = torch.where(given >= 0, probabilities, 1.0)
    return standing


def _with_rows(blocks: list[RowBlock]) -> Iterator[tuple[RowBlock, int]]:
    """Each block with its first row among all of the forward's."""
    first = 0
    for block in blocks:
        yield block, first
        first += block.rows


def random_rows(blocks: list[RowBlock]) -> RandomRows | None:
    """The parameters of all rows at a temperature above 0; None when every row is greedy."""
    chosen = [
        (block, first) for block, first in _with_rows(blocks) if block.offsets and not block.sequence.sampling.greedy
    ]
    if not chosen:
        return None
    counts = [block.rows for block, _ in chosen]

    def each(values: list[float] | list[int] | list[bool], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(torch.tensor(counts))

    samplings = [block.sequence.sampling for block, _ in chosen]
    return RandomRows(
        rows=torch.from_numpy(np.concatenate([np.arange(row, row + block.rows) for block, row in chosen])),
        temperature=each([sampling.temperature for sampling in samplings], torch.float32),
        top_k=each([sampling.top_k for sampling in samplings], torch.int64),
        top_p=each([sampling.top_p for sampling in samplings], torch.float32),
        seeds=each([seed_bits(sampling.seed) for sampling in samplings], torch.int64),
        positions=torch.from_numpy(
            np.concatenate([block.first_position + np.array(block.offsets) for block, _ in chosen])
        ),
        stages=each([int(block.stage) for block, _ in chosen], torch.int64),
        steps=each([block.step for block, _ in chosen], torch.int64),
        choices=torch.zeros(sum(counts), dtype=torch.int64),
        tempered=each([block.stage is Stage.DRAFT for block, _ in chosen], torch.bool),
    )


def banned_tokens(blocks: list[RowBlock]) -> tuple[Tensor, Tensor] | None:
    """Rows and ids of stop tokens that `min_tokens` keeps out at the first output offsets."""
    rows: list[int] = []
    ids: list[int] = []
    for block, first_row in _with_rows(blocks):
        sequence = block.sequence
        first_free = sequence.prompt_tokens + sequence.limits.min_tokens
        if block.first_position < first_free:
            for place, offset in enumerate(block.offsets):
                if block.first_position + offset < first_free:
                    stops = sorted(sequence.limits.stop_ids)
                    rows.extend([first_row + place] * len(stops))
                    ids.extend(stops)
    return (torch.tensor(rows), torch.tensor(ids)) if rows else None
