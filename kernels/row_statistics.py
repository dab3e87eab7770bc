"""What a step wants to know of each row of logits, gathered part by part of the vocabulary.

Every part (a tile of a kernel, a chunk, a rank's shard) leaves a few numbers per row, its *partials*; `combine` merges
any parts into one, in any grouping, and `finish` turns them into `Statistics` (`kernels/combine.py`). Nothing ever
holds all logits, and under tensor parallelism ranks exchange the partials of `combine`: 44 bytes a row, or 28 where
nothing is sampled.

The rules are those of `requests.md` sections 1 and 3. The mask id and a row's banned ids are no candidates; all logits
count in the softmax. A row at a temperature T > 0 takes argmax(logit / T + noise), the others the largest logit, the
lowest id among equals. A row with a NaN or +inf logit has the lowest such candidate as its token and NaN for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.noise import gumbel_noise, gumbel_tile

LARGEST = tl.constexpr(0)  # largest logit
MASS = tl.constexpr(1)  # sum of exp(logit - LARGEST)
MOMENT = tl.constexpr(2)  # sum of exp(logit - LARGEST) * (logit - LARGEST)
BEST = tl.constexpr(3)  # largest logit of a candidate
BEST_ID = tl.constexpr(4)  # its token id, the lowest among equals; ids are exact in float32
SECOND = tl.constexpr(5)  # largest logit of any other candidate
GIVEN = tl.constexpr(6)  # logit of the given token, -inf in other parts
GREEDY_FIELDS = 7
DRAWN = tl.constexpr(7)  # logit of the candidate with the largest logit / T + noise
SCORE = tl.constexpr(8)  # that, less BEST / T, so that no temperature overflows
DRAWN_ID = tl.constexpr(9)  # its token id
TEMPERED_MASS = tl.constexpr(10)  # sum of exp((logit - LARGEST) / T)
SAMPLED_FIELDS = 11

MOST_VOCAB = 1 << 24
"""Ids are kept as float32 among the other partials."""
SMALLEST_TEMPERATURE = tl.constexpr(1e-20)
"""Divides any gap of logits without a NaN; far below it already, the most likely token is certain."""
NO_ID = tl.constexpr(1 << 30)


@dataclass(slots=True)
class RowNoise:
    """How rows are sampled; all tensors `[rows]`.

    Attributes:
        temperature: float32; 0 = greedy. tempered: bool, the confidence is at that temperature instead of 1 (drafts).
        seeds: int64. positions: int32. places: int32, stage | step << 8. choices: int32. See `kernels/noise.py`.
    """

    temperature: Tensor
    tempered: Tensor
    seeds: Tensor
    positions: Tensor
    places: Tensor
    choices: Tensor

    @staticmethod
    def dtypes() -> tuple[torch.dtype, ...]:
        """Of the attributes, in their order."""
        return torch.float32, torch.bool, torch.int64, torch.int32, torch.int32, torch.int32

    def part(self, rows: slice) -> RowNoise:
        """Of some of the rows."""
        return RowNoise(*(getattr(self, item.name)[rows] for item in fields(self)))

    @property
    def stretch(self) -> Tensor:
        """1 / temperature, float32 `[rows]`."""
        return 1 / self.temperature.clamp(min=SMALLEST_TEMPERATURE.value)


@dataclass(slots=True)
class RowRules:
    """What is asked of each row. Tensors lie on the logits' device.

    Attributes:
        mask_id: never a candidate.
        banned: int64 `[rows, any]`, contiguous, ids that are no candidates in a row, filled up with -1.
        given: int64 `[rows]`, a token whose probability is wanted besides (the audit), -1 for none.
        noise: None when every row is greedy, which saves drawing it.
    """

    mask_id: int
    banned: Tensor
    given: Tensor
    noise: RowNoise | None = None

    def part(self, rows: slice) -> RowRules:
        """Of some of the rows."""
        noise = None if self.noise is None else self.noise.part(rows)
        return RowRules(self.mask_id, self.banned[rows], self.given[rows], noise)

    @property
    def fields(self) -> int:
        return GREEDY_FIELDS if self.noise is None else SAMPLED_FIELDS


@dataclass(slots=True)
class Statistics:
    """What is known of each row; all tensors `[rows]`, float32 but for the tokens, logarithms natural.

    Attributes:
        tokens: int64, the chosen tokens.
        confidence: probability of the chosen token, at temperature 1 or, in tempered rows, at the row's own.
        entropy: of the softmax over all logits at temperature 1.
        margin: log of the ratio of the two largest probabilities among candidates; inf with a single one.
        given_logprob: log p(given token) over all logits at temperature 1; -inf without one.
        given_ratio: log p(given token) - log p(best candidate), what an audit's tolerance judges; -inf without one.
    """

    tokens: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    given_logprob: Tensor
    given_ratio: Tensor


def check_vocab(vocab: int) -> None:
    """Raises ValueError where ids would not be exact among the partials."""
    if vocab > MOST_VOCAB:
        raise ValueError(f"vocabulary of {vocab} tokens; row statistics can tell {MOST_VOCAB} apart")


def partials_torch(logits: Tensor, first_id: int, rules: RowRules) -> Tensor:
    """Partials of one part of the vocabulary in plain PyTorch: float32 `[fields, rows, 1]`.

    Args:
        logits: float32 `[rows, ids]`, of the tokens from `first_id` on.
    """
    rows, count = logits.shape
    ids = torch.arange(first_id, first_id + count, device=logits.device)
    minus_inf = float("-inf")
    largest = logits.amax(-1)
    # NaN stays visible; only a part without any logit above -inf has no mass.
    empty = largest == minus_inf
    gaps = logits - torch.where(empty, 0.0, largest)[:, None]
    weights = gaps.exp()
    moment = torch.where(weights == 0, 0.0, weights * gaps).sum(-1)

    candidates = logits.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=minus_inf)
    excluded = (ids == rules.mask_id).expand(rows, count)
    for column in range(rules.banned.shape[1]):
        excluded = excluded | (ids == rules.banned[:, column : column + 1])
    candidates = torch.where(excluded, minus_inf, candidates)
    best, best_at = _first_largest(candidates)
    second = candidates.scatter(1, best_at[:, None], minus_inf).amax(-1)
    given = torch.where(ids == rules.given[:, None], logits, minus_inf).amax(-1)
    fields = [largest, weights.sum(-1), moment, best, first_id + best_at, second, given]
    if rules.noise is not None:
        noise = gumbel_noise(*_counters(rules.noise), count, first_id)
        stretch = rules.noise.stretch[:, None]
        scores = scores_of(candidates, (candidates - best[:, None]) * stretch + noise)
        score, drawn_at = _first_largest(scores)
        drawn = candidates.gather(1, drawn_at[:, None])[:, 0]
        tempered = (gaps * stretch).exp().sum(-1)
        fields += [drawn, score, first_id + drawn_at, tempered]
    return torch.stack([field.float() for field in fields])[..., None]


def scores_of(logits: Tensor, scores: Tensor) -> Tensor:
    """`scores`, but the scores of infinite logits are the logits themselves."""
    return torch.where(logits.isinf(), logits, scores)


def _first_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value, and its place, the lowest among equals."""
    place = values.argmax(-1)
    return values.gather(1, place[:, None])[:, 0], place


def _counters(noise: RowNoise) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `gumbel_noise` takes them."""
    places = noise.places.long()
    return noise.seeds, noise.positions.long(), places & 255, places >> 8, noise.choices.long()


@triton.jit  # type: ignore[untyped-decorator]
def store_partials(  # type: ignore[no-untyped-def]
    logits,
    first_id,
    vocab_end,
    rows,
    row_count,
    part,
    part_count,
    partials_ptr,
    mask_id,
    banned_ptr,
    banned_count,
    given_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    places_ptr,
    choices_ptr,
    SAMPLED: tl.constexpr,
    IDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Partials of one tile, in registers, to `partials` `[fields, row_count, part_count]` at `part`.

    Args:
        logits: float32 `[IDS, ROWS]` of the tokens from `first_id` on; those from `vocab_end` on are padding.
        rows: int32 `[ROWS]`; those from `row_count` on are padding.
    """
    minus_inf = float("-inf")
    ids = (first_id + tl.arange(0, IDS))[:, None]
    real = rows < row_count
    logits = tl.where(ids < vocab_end, logits, minus_inf)
    to = partials_ptr + rows * part_count + part
    step = row_count * part_count

    # tl.max passes over NaN; the sums do not.
    largest = tl.max(logits, axis=0)
    gaps = logits - tl.where(largest == minus_inf, 0.0, largest)[None, :]
    weights = tl.exp(gaps)
    tl.store(to + LARGEST * step, largest, mask=real)
    tl.store(to + MASS * step, tl.sum(weights, axis=0), mask=real)
    tl.store(to + MOMENT * step, tl.sum(tl.where(weights == 0, 0.0, weights * gaps), axis=0), mask=real)
    given = tl.load(given_ptr + rows, mask=real, other=-1).to(tl.int32)
    given_logit = tl.max(tl.where(ids == given[None, :], logits, minus_inf), axis=0)
    tl.store(to + GIVEN * step, given_logit, mask=real)
    if SAMPLED:
        temperature = tl.load(temperature_ptr + rows, mask=real, other=1.0)
        stretch = (1.0 / tl.maximum(temperature, SMALLEST_TEMPERATURE))[None, :]
        tl.store(to + TEMPERED_MASS * step, tl.sum(tl.exp(gaps * stretch), axis=0), mask=real)

    candidates = tl.where(logits != logits, float("inf"), logits)
    candidates = tl.where(ids == mask_id, minus_inf, candidates)
    for column in range(banned_count):
        banned = tl.load(banned_ptr + rows * banned_count + column, mask=real, other=-1).to(tl.int32)
        candidates = tl.where(ids == banned[None, :], minus_inf, candidates)
    best = tl.max(candidates, axis=0)
    best_id = tl.min(tl.where(candidates == best[None, :], ids, NO_ID), axis=0)
    second = tl.max(tl.where(ids == best_id[None, :], minus_inf, candidates), axis=0)
    tl.store(to + BEST * step, best, mask=real)
    tl.store(to + BEST_ID * step, best_id.to(tl.float32), mask=real)
    tl.store(to + SECOND * step, second, mask=real)
    if SAMPLED:
        noise = gumbel_tile(
            tl.load(seeds_ptr + rows, mask=real, other=0),
            tl.load(positions_ptr + rows, mask=real, other=0),
            tl.load(places_ptr + rows, mask=real, other=0),
            tl.load(choices_ptr + rows, mask=real, other=0),
            first_id,
            ROWS,
            IDS,
        )
        scores = (candidates - best[None, :]) * stretch + noise
        scores = tl.where(tl.abs(candidates) == float("inf"), candidates, scores)
        top = tl.max(scores, axis=0)
        drawn_id = tl.min(tl.where(scores == top[None, :], ids, NO_ID), axis=0)
        drawn = ids == drawn_id[None, :]
        tl.store(to + DRAWN * step, tl.max(tl.where(drawn, candidates, minus_inf), axis=0), mask=real)
        tl.store(to + SCORE * step, top, mask=real)
        tl.store(to + DRAWN_ID * step, drawn_id.to(tl.float32), mask=real)
