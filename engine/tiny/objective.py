"""The joint objective of the family (contract 7.5), on rows [clean prompt and answer | noisy answer].

The prompt is never masked, so its noisy copy would only repeat the clean one: leaving it out saves most of the cost and
changes nothing, because noisy tokens see the clean prompt and never the noisy one.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from engine.tiny.tokenizer import EOS_ID, MASK_ID

BLOCK_LENGTHS = (4, 8, 16, 32)
CLEAN, PADDING = -1, -2
LEAST_NOISE = 1e-3


@dataclass(slots=True)
class Row:
    """One training row, a list entry per token.

    `limit` is how many leading clean tokens a token sees; `block` is the noisy block it belongs to (all of which it
    sees), CLEAN for the clean part. A token with a `target` is supervised with `weight`.
    """

    ids: list[int]
    positions: list[int]
    limit: list[int]
    block: list[int]
    target: list[int]
    weight: list[float]


def clean_row(prompt: list[int], answer: list[int]) -> Row:
    """The AR part: causal, position i predicts token i + 1, only the answer (EOS included) is supervised."""
    ids = prompt + answer
    length = len(ids)
    silent = len(prompt) - 1
    return Row(
        ids=ids,
        positions=list(range(length)),
        limit=list(range(1, length + 1)),
        block=[CLEAN] * length,
        target=[-1] * silent + answer + [-1],
        weight=[0.0] * silent + [1.0] * len(answer) + [0.0],
    )


def noisy_starts(answer_length: int, block_length: int, offset: int) -> range:
    """Where the noisy blocks start, counted from the answer's start. Self-speculation drafts from any `offset`."""
    return range(offset, answer_length, block_length)


def add_noise(row: Row, prompt_length: int, answer: list[int], block_length: int, offset: int, rng: Random) -> Row:
    """`row` with a noisy half for the answer from `offset` on: masks predict the token at their own position.

    The last block is filled with EOS up to its end, supervised in this half only. Each block draws its own noise level
    t ~ U[0, 1], and its masked tokens weigh 1 / p. One block in four is all masks, as the first denoise step and a
    draft see it. The first token of a block, which inference knows from the AR seed, stays clean three times in four.
    """
    for number, start in enumerate(noisy_starts(len(answer), block_length, offset)):
        tokens = answer[start : start + block_length]
        tokens += [EOS_ID] * (block_length - len(tokens))
        all_masked = rng.random() < 0.25
        probability = 1.0 if all_masked else LEAST_NOISE + (1 - LEAST_NOISE) * rng.random()
        masked = [rng.random() < probability for _ in tokens]
        if rng.random() < 0.75:
            masked[0] = False
        begin = prompt_length + start
        row.ids += [MASK_ID if hidden else token for token, hidden in zip(tokens, masked, strict=True)]
        row.positions += range(begin, begin + block_length)
        row.limit += [begin] * block_length
        row.block += [number] * block_length
        row.target += [token if hidden else -1 for token, hidden in zip(tokens, masked, strict=True)]
        row.weight += [1 / max(probability, 0.02) if hidden else 0.0 for hidden in masked]
    return row


def draw_noise(row: Row, prompt_length: int, answer: list[int], rng: Random) -> Row:
    """`add_noise` with a drawn block length, and with a drawn offset in half of the rows."""
    block_length = rng.choice(BLOCK_LENGTHS)
    offset = rng.randrange(min(block_length, len(answer))) if rng.random() < 0.5 else 0
    return add_noise(row, prompt_length, answer, block_length, offset, rng)


def visibility(limit: Tensor, block: Tensor, positions: Tensor) -> Tensor:
    """The attention mask of rows [B, L] (all int64): bool [B, 1, L, L], true where the query (row) sees the key.

    Clean keys before the query's limit, and the query's own noisy block. Padding sees padding, so no row is empty.
    """
    key_clean = (block == CLEAN)[:, None, :]
    sees_clean = key_clean & (positions[:, None, :] < limit[:, :, None])
    same_block = (block[:, :, None] == block[:, None, :]) & ~key_clean
    return (sees_clean | same_block)[:, None]


@dataclass(slots=True)
class Batch:
    """Padded rows as tensors [B, L]; `mask` is None for causal rows (padding is on the right and sees only itself)."""

    ids: Tensor
    positions: Tensor
    target: Tensor
    weight: Tensor
    clean: Tensor
    mask: Tensor | None


def collate(rows: list[Row], multiple: int = 16) -> Batch:
    """Pads rows to one length, a multiple of `multiple`, so that few shapes occur."""
    length = -(-max(len(row.ids) for row in rows) // multiple) * multiple

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([getattr(row, name) + [fill] * (length - len(row.ids)) for row in rows])

    block = padded("block", PADDING)
    positions = padded("positions", 0)
    noisy = bool((block >= 0).any())
    return Batch(
        ids=padded("ids", EOS_ID),
        positions=positions,
        target=padded("target", -1),
        weight=padded("weight", 0).float(),
        clean=block == CLEAN,
        mask=visibility(padded("limit", 0), block, positions) if noisy else None,
    )
