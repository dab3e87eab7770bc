"""Choosing tokens from logits: greedy for most rows, and temperature, top-k, top-p and seeded noise for the others.

`requests.md` sections 1 and 3: the mask id is never a candidate, the confidence is the softmax over all logits (mask
id included) at temperature 1, and noise depends on the row's own seed and place only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.noise import gumbel_noise, gumbel_noise_at

_SMALLEST_TEMPERATURE = 1e-20
"""Divides any logit gap without a NaN; far below it already, the most likely token is certain."""
_FIRST_LOOK = 64
"""Most filters keep fewer tokens than this: so many are sorted first, and noise is drawn token by token."""


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

    @staticmethod
    def dtypes() -> tuple[torch.dtype, ...]:
        """Of the attributes, in their order."""
        return (torch.int64, torch.float32, torch.int64, torch.float32, *(torch.int64,) * 5, torch.bool)


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
    kept, least = _kept(logits, k, top_p, min(_FIRST_LOOK, vocab))
    above, equal = logits > least[:, None], logits == least[:, None]
    wanted = kept - above.sum(-1)
    if bool((equal.sum(-1) > wanted).any()):
        equal &= equal.cumsum(-1) <= wanted[:, None]
    return logits.masked_fill(~(above | equal), float("-inf"))


def _kept(logits: Tensor, k: Tensor, top_p: Tensor, look: int) -> tuple[Tensor, Tensor]:
    """How many tokens each row keeps, and the smallest logit among them; the `look` largest are tried first."""
    vocab = logits.shape[1]
    largest = _largest(logits, look)
    mass = (largest - largest[:, :1]).exp_()
    running = mass.cumsum(-1)
    whole = 1 / logits.softmax(-1).amax(-1, keepdim=True)  # a plain sum's bits could depend on the number of rows
    total = torch.where(k[:, None] < vocab, running.gather(1, k[:, None].clamp(max=look) - 1), whole)
    # Without top-p all of top-k stays, whatever the sum's rounding says.
    enough = (running - mass < top_p[:, None] * total).sum(-1)
    kept = torch.where(top_p < 1, enough, k).clamp_(min=1).minimum(k)
    least = largest.gather(1, kept[:, None].clamp(max=look) - 1)[:, 0]
    beyond = torch.maximum(kept + 1, torch.where(k < vocab, k, 0)) > look
    if look < vocab and bool(beyond.any()):
        kept[beyond], least[beyond] = _kept(logits[beyond], k[beyond], top_p[beyond], vocab)
    return kept, least


def _pick_random(logits: Tensor, random: RandomRows) -> Tensor:
    scaled = _tempered(logits[random.rows], random.temperature)
    scores = filter_logits(scaled, random.top_k, random.top_p)
    is_open = scores > float("-inf")
    few = is_open.sum(-1) <= _FIRST_LOOK
    if bool(few.any()):
        rows, ids = (is_open & few[:, None]).nonzero(as_tuple=True)
        scores[rows, ids] += gumbel_noise_at(*_place(random, rows), ids)
    if not bool(few.all()):
        many = (~few).nonzero(as_tuple=True)[0]
        scores[many] += gumbel_noise(*_place(random, many), logits.shape[1])
    return _first_largest(scores)


def _place(random: RandomRows, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the noise of these rows comes from, as `gumbel_noise` takes it."""
    return random.seeds[rows], random.positions[rows], random.stages[rows], random.steps[rows], random.choices[rows]


def _tempered(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits / T up to a constant per row, so that no temperature overflows."""
    gaps = logits - logits.amax(-1, keepdim=True)
    return gaps / temperature.clamp(min=_SMALLEST_TEMPERATURE)[:, None]


def _first_largest(values: Tensor) -> Tensor:
    """Index of each row's largest value, the lowest among equals; NumPy's search is ten times torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Each row's `count` largest values, sorted; NumPy's vector sort is many times faster than torch's on a CPU."""
    if values.device.type != "cpu":
        return values.topk(count, dim=-1).values
    array = values.numpy()
    if count < array.shape[1]:
        array = np.partition(array, -count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(array, axis=-1)[:, ::-1].copy())
