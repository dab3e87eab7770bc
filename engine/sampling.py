"""Choosing tokens from logits: greedy for most rows, and temperature, top-k, top-p and seeded noise for the others.

`requests.md` sections 1 and 3: the mask id is never a candidate, the confidence is the softmax over all logits (mask
id included) at temperature 1, and noise depends on the row's own seed and place only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.noise import gumbel_noise

_SMALLEST_TEMPERATURE = 1e-20
"""Divides any logit gap without a NaN; far below it already, the most likely token is certain."""


@dataclass(slots=True)
class RandomRows:
    """The rows of a forward that are chosen at a temperature above 0; all tensors `[r]`.

    Attributes:
        rows: int64, ascending, which rows of the logits they are.
        temperature: float32, above 0. top_k: int64, 0 or less = all. top_p: float32, 1 = all.
        seeds: int64, see `seed_bits`. positions: int64, absolute position of the chosen token.
        stages, steps, choices: int64, see `gumbel_noise`.
        tempered: bool, whether the confidence is at the row's temperature (drafts) instead of 1.
    """

    rows: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    positions: Tensor
    stages: Tensor
    steps: Tensor
    choices: Tensor
    tempered: Tensor


@torch.inference_mode()
def pick(
    logits: Tensor, mask_id: int, random: RandomRows | None = None, banned: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row, and how likely the model finds it.

    Greedy rows take the largest logit (the lowest id among equals); random rows argmax(logits / T + noise) within
    their top-k and top-p.

    Args:
        logits: float32 `[rows, vocab]`, contiguous; written to on the way and restored before returning.
        mask_id: never a candidate; it counts in the confidence, though.
        random: the rows that are not greedy; None costs nothing.
        banned: int64 rows `[b]` and token ids `[b]` that are no candidates there (EOS below `min_tokens`).

    Returns tokens int64 `[rows]` and confidence float32 `[rows]`.
    """
    probabilities = logits.softmax(-1)
    masks = logits[:, mask_id].clone()
    held = None if banned is None else logits[banned]
    logits[:, mask_id] = float("-inf")
    if banned is not None:
        logits[banned] = float("-inf")
    tokens = _first_largest(logits)
    if random is not None:
        tokens[random.rows] = _pick_random(logits, random)
    if banned is not None and held is not None:
        logits[banned] = held
    logits[:, mask_id] = masks
    confidence = probabilities.gather(1, tokens[:, None])[:, 0]
    if random is not None and bool(random.tempered.any()):
        rows = random.rows[random.tempered]
        scaled = _tempered(logits[rows], random.temperature[random.tempered])
        confidence[rows] = scaled.softmax(-1).gather(1, tokens[rows, None])[:, 0]
    return tokens, confidence


def filter_logits(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`logits` with -inf outside each row's top-k and, within that, top-p.

    Top-k keeps the k largest, the lowest ids among equals; top-p the smallest set of the most likely tokens that holds
    at least p of what top-k left. At least one token stays.

    Args:
        logits: float32 `[rows, vocab]`, already divided by the temperature.
        top_k: int64 `[rows]`, 0 or less = all. top_p: float32 `[rows]`, 1 = all.
    """
    vocab = logits.shape[1]
    k = torch.where(top_k > 0, top_k, vocab).clamp_(max=vocab)
    active = (k < vocab) | (top_p < 1)
    if not bool(active.any()):
        return logits
    if not bool(active.all()):
        filtered = logits.clone()
        filtered[active] = filter_logits(logits[active], top_k[active], top_p[active])
        return filtered
    ordered = _descending(logits)
    ordered.masked_fill_(torch.arange(vocab, device=logits.device) >= k[:, None], float("-inf"))
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1).sub_(mass)
    # Without top-p all of top-k stays, whatever the sum's rounding says.
    kept = torch.where(top_p < 1, (before < top_p[:, None]).sum(-1), k).clamp_(min=1).minimum(k)
    least = ordered.gather(1, kept[:, None] - 1)
    above, equal = logits > least, logits == least
    wanted = kept - above.sum(-1)
    if bool((equal.sum(-1) > wanted).any()):
        equal &= equal.cumsum(-1) <= wanted[:, None]
    return logits.masked_fill(~(above | equal), float("-inf"))


def _pick_random(logits: Tensor, random: RandomRows) -> Tensor:
    scaled = _tempered(logits[random.rows], random.temperature)
    filtered = filter_logits(scaled, random.top_k, random.top_p)
    noise = gumbel_noise(random.seeds, random.positions, random.stages, random.steps, random.choices, logits.shape[1])
    return _first_largest(filtered + noise)


def _tempered(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits / T up to a constant per row, so that no temperature overflows."""
    gaps = logits - logits.amax(-1, keepdim=True)
    return gaps / temperature.clamp(min=_SMALLEST_TEMPERATURE)[:, None]


def _first_largest(values: Tensor) -> Tensor:
    """Index of each row's largest value, the lowest among equals; NumPy's search is ten times torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)


def _descending(values: Tensor) -> Tensor:
    """Each row sorted; NumPy's vector sort is ten times torch's on a CPU."""
    if values.device.type == "cpu":
        ordered = values.numpy().copy()
        ordered.sort(-1)
        return torch.from_numpy(ordered[:, ::-1].copy())
    return values.sort(dim=-1, descending=True).values
