"""Random rows for the denoise head, and their statistics in float64, a row at a time, written from the words of
`requests.md` sections 1 and 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.noise import gumbel_noise
from kernels.row_statistics import RowNoise, RowRules, Statistics

MASK_ID = 5
CLOSE = 1e-5
"""Gaps of scores below it may fall either way in float32 (`requests.md` section 3)."""


@dataclass
class Case:
    """Arguments of `denoise_head`, and the logits they stand for, float64 `[rows, vocab]`."""

    hidden: Tensor
    weight: Tensor
    rules: RowRules

    @property
    def logits(self) -> Tensor:
        return (self.hidden.double() @ self.weight.double().T).to(self.hidden.dtype).double()


def random_case(
    seed: int,
    rows: int,
    vocab: int,
    size: int = 32,
    banned: int = 2,
    sampled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Products of small integers, exact in every dtype, so that equal logits are frequent, with some bad luck."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    hidden = integers(-2, 3, rows, size).to(dtype)
    weight = integers(-3, 4, vocab, size).to(dtype) / 8
    if seed % 3 == 0:
        weight[integers(0, vocab, 1)] = 0
        weight[MASK_ID % vocab] *= 4  # often the largest
    return Case(hidden, weight, random_rules(draw, rows, vocab, banned, sampled))


def random_rules(draw: torch.Generator, rows: int, vocab: int, banned: int, sampled: bool) -> RowRules:
    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    noise = None
    if sampled:
        temperature = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.5, 2.0, 1e-30])[integers(0, 7, rows)]
        noise = RowNoise(
            temperature=temperature,
            tempered=integers(0, 2, rows).bool(),
            seeds=integers(-(2**62), 2**62, rows),
            positions=integers(0, 2**18, rows).int(),
            places=(integers(0, 3, rows) | integers(0, 32, rows) << 8).int(),
            choices=integers(0, 4, rows).int(),
        )
    return RowRules(
        mask_id=MASK_ID,
        banned=integers(-1, vocab, rows, banned),
        given=integers(-1, vocab, rows),
        noise=noise,
    )


@dataclass
class Expected:
    """What the rules say of one row; `gap` is how much better the chosen token is than the next."""

    token: int
    gap: float
    confidence: float
    entropy: float
    margin: float
    given_logprob: float
    given_ratio: float


def expected(logits: Tensor, rules: RowRules, row: int) -> Expected:
    """The statistics of one row of float64 logits without NaN or inf."""
    values: list[float] = logits[row].tolist()
    noise = [0.0] * len(values)
    temperature = 0.0
    tempered = False
    if rules.noise is not None:
        counters = rules.noise
        temperature, tempered = float(counters.temperature[row]), bool(counters.tempered[row])
        where = slice(row, row + 1)
        place = counters.places[where].long()
        noise = gumbel_noise(
            counters.seeds[where], counters.positions[where].long(), place & 255, place >> 8,
            counters.choices[where].long(), len(values),
        )[0].tolist()  # fmt: skip
    excluded = {rules.mask_id, *rules.banned[row].tolist()}
    open_ids = [token for token in range(len(values)) if token not in excluded]
    scores = {token: values[token] for token in open_ids}
    if temperature > 0:
        # Below 1e-20 nothing but the largest logit and the noise among its equals counts.
        top = max(scores.values())
        heat = max(temperature, 1e-20)
        scores = {token: (value - top) / heat + noise[token] for token, value in scores.items()}
    ranked = sorted(open_ids, key=lambda token: (-scores[token], token))
    token = ranked[0]
    gap = scores[token] - scores[ranked[1]] if len(ranked) > 1 else math.inf

    def log_mass(heat: float) -> float:
        top = max(values)
        return top / heat + math.log(math.fsum(math.exp((value - top) / heat) for value in values))

    heat = max(temperature, 1e-20) if temperature > 0 and tempered else 1.0
    whole = log_mass(1.0)
    logs = [value - whole for value in values]
    best = sorted((values[token] for token in open_ids), reverse=True)
    given = int(rules.given[row])
    return Expected(
        token=token,
        gap=gap,
        confidence=math.exp((values[token] - max(values)) / heat)
        / math.fsum(math.exp((value - max(values)) / heat) for value in values),
        entropy=-math.fsum(math.exp(value) * value for value in logs),
        margin=best[0] - best[1] if len(best) > 1 else math.inf,
        given_logprob=logs[given] if given >= 0 else -math.inf,
        given_ratio=values[given] - best[0] if given >= 0 else -math.inf,
    )


def check(got: Statistics, logits: Tensor, rules: RowRules) -> int:
    """Asserts that every row is as `expected` says; returns how many rows were too close to call, which is rare."""
    close_calls = 0
    for row in range(logits.shape[0]):
        want = expected(logits, rules, row)
        sampled = rules.noise is not None and float(rules.noise.temperature[row]) > 0
        if int(got.tokens[row]) != want.token:
            assert sampled, (row, want)
            assert want.gap < CLOSE, (row, want)
            close_calls += 1
            continue
        for name in ("confidence", "entropy", "margin", "given_logprob", "given_ratio"):
            value = float(getattr(got, name)[row])
            assert math.isclose(value, getattr(want, name), rel_tol=2e-5, abs_tol=2e-5), (row, name, value, want)
    return close_calls


def same(got: Statistics, want: Statistics) -> None:
    """Asserts equal tokens and statistics equal but for rounding, NaN and inf included."""
    assert torch.equal(got.tokens, want.tokens)
    for name in ("confidence", "entropy", "margin", "given_logprob", "given_ratio"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=2e-5, atol=2e-5, equal_nan=True)
