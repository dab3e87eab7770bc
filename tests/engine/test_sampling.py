"""Token choice: greedy, filters and their ties, bans, confidences, and the distribution of random picks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.noise import Stage, seed_bits
from engine.sampling import RandomRows, filter_logits, pick

MASK_ID = 3


def random_rows(
    rows: list[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    positions: list[int] | None = None,
    tempered: bool = False,
) -> RandomRows:
    count = len(rows)
    return RandomRows(
        rows=torch.tensor(rows),
        temperature=torch.full((count,), temperature),
        top_k=torch.full((count,), top_k),
        top_p=torch.full((count,), top_p),
        seeds=torch.full((count,), seed_bits(seed)),
        positions=torch.tensor(positions if positions is not None else list(range(count))),
        stages=torch.full((count,), int(Stage.CAUSAL)),
        steps=torch.zeros(count, dtype=torch.int64),
        choices=torch.zeros(count, dtype=torch.int64),
        tempered=torch.full((count,), tempered),
    )


def test_greedy_takes_the_lowest_of_equals_and_never_the_mask() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 9.0, 1.0], [5.0, 1.0, 1.0, 5.0, 5.0]])
    before = logits.clone()
    tokens, confidence = pick(logits, MASK_ID)
    assert tokens.tolist() == [1, 0]
    assert torch.equal(logits, before)
    # The mask's logit counts in the softmax: e^2 / (1 + 2 e^2 + e^9 + e), and a third of nearly everything.
    whole = 1 + 2 * math.e**2 + math.e**9 + math.e
    assert confidence[0].item() == pytest.approx(math.e**2 / whole, rel=1e-5)
    assert confidence[1].item() == pytest.approx(1 / (3 + 2 * math.e**-4), rel=1e-5)


def test_banned_tokens_are_no_candidates_in_their_rows_only() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 0.0, 0.0]] * 3)
    before = logits.clone()
    banned = (torch.tensor([0, 2, 2]), torch.tensor([1, 1, 2]))
    tokens, confidence = pick(logits, MASK_ID, banned=banned)
    assert tokens.tolist() == [2, 1, 0]
    assert torch.equal(logits, before)
    assert confidence.tolist() == pytest.approx(before.softmax(-1)[[0, 1, 2], [2, 1, 0]].tolist())
    for seed in range(50):
        tokens, _ = pick(logits, MASK_ID, random_rows([0, 1, 2], temperature=2.0, seed=seed), banned)
        assert tokens[0] != 1
        assert tokens[2] not in (1, 2)
        assert MASK_ID not in tokens


def test_random_rows_leave_greedy_rows_alone() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    greedy, greedy_confidence = pick(logits, MASK_ID)
    tokens, confidence = pick(logits, MASK_ID, random_rows([1, 4], temperature=2.0, seed=3))
    for row in (0, 2, 3, 5):
        assert tokens[row] == greedy[row]
        assert confidence[row] == greedy_confidence[row]


def test_confidence_is_untempered_unless_asked() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    tokens, confidence = pick(logits, MASK_ID, random_rows([0, 1], temperature=0.5, seed=9))
    assert confidence.tolist() == pytest.approx(logits.softmax(-1).gather(1, tokens[:, None])[:, 0].tolist())
    same, tempered = pick(logits, MASK_ID, random_rows([0, 1], temperature=0.5, seed=9, tempered=True))
    assert torch.equal(same, tokens)
    assert tempered.tolist() == pytest.approx((logits / 0.5).softmax(-1).gather(1, tokens[:, None])[:, 0].tolist())


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-3])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(4)) * 20
    greedy, _ = pick(logits, MASK_ID)
    tokens, _ = pick(logits, MASK_ID, random_rows(list(range(20)), temperature=temperature))
    assert torch.equal(tokens, greedy)


def slow_filter(row: list[float], top_k: int, top_p: float) -> set[int]:
    """Kept ids, by sorting and adding up in float64. Ties to the lowest id."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        weights = [math.exp(row[token] - row[order[0]]) for token in order]
        kept, mass = [], 0.0
        for token, weight in zip(order, weights, strict=True):
            kept.append(token)
            mass += weight / sum(weights)
            if mass >= top_p - 1e-9:
                break
        order = kept
    return set(order)


@settings(max_examples=200)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=12, max_size=12),
            st.integers(-1, 14),
            st.sampled_from([0.051, 0.317, 0.487, 0.771, 0.913, 1.0]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_filters_keep_what_the_definition_keeps(rows: list[tuple[list[float], int, float]]) -> None:
    logits = torch.tensor([row[0] for row in rows])
    before = logits.clone()
    filtered = filter_logits(logits, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]))
    assert torch.equal(logits, before)
    for index, (values, top_k, top_p) in enumerate(rows):
        kept = {token for token in range(12) if filtered[index, token] > float("-inf")}
        wanted = slow_filter(values, top_k, top_p)
        assert kept == wanted, (values, top_k, top_p)
        for token in kept:
            assert filtered[index, token] == logits[index, token]


@pytest.mark.parametrize("top_k", [0, 5, 63, 64, 65, 150, 300, 1000])
@pytest.mark.parametrize("top_p", [0.2, 0.903, 0.9997, 1.0])
def test_filters_on_flat_and_peaked_rows_at_once(top_k: int, top_p: float) -> None:
    """Rows whose filter keeps one token, some, and nearly all of 300."""
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(8)) * torch.tensor(
        [[0.01], [1.0], [4.0], [30.0]]
    )
    filtered = filter_logits(logits, torch.full((4,), top_k), torch.full((4,), top_p))
    for row in range(4):
        kept = {token for token in range(300) if filtered[row, token] > float("-inf")}
        assert kept == slow_filter(logits[row].tolist(), top_k, top_p)
        alone = filter_logits(logits[row : row + 1], torch.tensor([top_k]), torch.tensor([top_p]))
        assert torch.equal(alone[0], filtered[row])


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The statistic over all tokens that are expected at least 5 times; the others count as one cell."""
    expected = probabilities * counts.sum()
    large = expected >= 5
    cells = torch.cat((counts[large], counts[~large].sum()[None]))
    wanted = torch.cat((expected[large], expected[~large].sum()[None]))
    kept = wanted > 0
    return float(((cells[kept] - wanted[kept]) ** 2 / wanted[kept]).sum())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 8, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.9)]
)
@pytest.mark.parametrize("seed", [0, 2**64 - 2, -(2**63), 123456789012345])
def test_picks_follow_the_filtered_softmax(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Chi-square of 20,000 picks, one position each; with at most 24 cells 60 is beyond the 0.9999 quantile."""
    vocab, draws = 24, 20_000
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(11)) * 2
    logits = row.expand(draws, vocab).contiguous()
    rows = random_rows(list(range(draws)), temperature, top_k, top_p, seed)
    tokens, _ = pick(logits, MASK_ID, rows)
    open_row = row.clone()
    open_row[MASK_ID] = float("-inf")
    kept = slow_filter((open_row / temperature).tolist(), top_k, top_p)
    scaled = open_row / temperature
    scaled[[token for token in range(vocab) if token not in kept]] = float("-inf")
    counts = torch.bincount(tokens, minlength=vocab).float()
    assert counts[MASK_ID] == 0
    assert chi_square(counts, scaled.softmax(-1)) < 60


def test_unlikely_tokens_keep_their_probability() -> None:
    """A token of probability 1e-4 is drawn 100 times in a million, give or take five standard deviations."""
    draws = 1_000_000
    logits = torch.tensor([[0.0, math.log(1e-4 / (1 - 1e-4))]]).expand(draws, 2).contiguous()
    logits = torch.cat((logits, torch.full((draws, 2), -100.0)), dim=1)
    tokens, _ = pick(logits, MASK_ID, random_rows(list(range(draws)), seed=5))
    assert 50 <= int((tokens == 1).sum()) <= 150


@pytest.mark.parametrize(("top_k", "top_p"), [(40, 0.95), (0, 1.0), (0, 0.99)])
def test_a_pick_does_not_depend_on_the_other_rows(top_k: int, top_p: float) -> None:
    logits = torch.randn(64, 297, generator=torch.Generator().manual_seed(6)) * torch.linspace(0.1, 10, 64)[:, None]
    rows = random_rows(list(range(64)), 1.5, top_k, top_p, seed=77)
    tokens, confidence = pick(logits, MASK_ID, rows)
    for row in range(64):
        alone = random_rows([0], 1.5, top_k, top_p, 77, positions=[row])
        token, sure = pick(logits[row : row + 1].clone(), MASK_ID, alone)
        assert token[0] == tokens[row]
        assert sure[0] == confidence[row]
