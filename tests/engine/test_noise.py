"""Philox against the known answers of Random123, and that noise depends on a row's own numbers only."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.noise import Stage, seed_bits
from kernels.noise import gumbel_noise, gumbel_noise_at, philox

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
MASK = 0xFFFFFFFF
SEEDS = st.integers(-(2**63), 2**64 - 1)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_in_torch_and_numpy(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    tensors = [torch.tensor([word]) for word in (*counter, *key)]
    words = philox((tensors[0], tensors[1], tensors[2], tensors[3]), (tensors[4], tensors[5]))
    assert tuple(int(word.item()) for word in words) == answer
    arrays = [tensor.numpy() for tensor in tensors]
    words = philox((arrays[0], arrays[1], arrays[2], arrays[3]), (arrays[4], arrays[5]))
    assert tuple(int(word.item()) for word in words) == answer


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in Python's unbounded integers, from the paper."""
    for _ in range(10):
        even, odd = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(odd >> 32) ^ counter[1] ^ key[0], odd & MASK, (even >> 32) ^ counter[3] ^ key[1], even & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return counter


def one_row(seed: int, position: int, stage: int, step: int, choice: int, vocab: int) -> Tensor:
    columns = [torch.tensor([value]) for value in (seed_bits(seed), position, stage, step, choice)]
    return gumbel_noise(columns[0], columns[1], columns[2], columns[3], columns[4], vocab)[0]


@settings(max_examples=40)
@given(
    seed=SEEDS,
    position=st.integers(0, 300_000),
    stage=st.sampled_from(list(Stage)),
    step=st.integers(0, 63),
    choice=st.integers(0, 9),
    token=st.integers(0, 200),
)
def test_noise_is_the_documented_function_of_its_counter(
    seed: int, position: int, stage: Stage, step: int, choice: int, token: int
) -> None:
    bits = seed % 2**64
    word = python_philox([token >> 2, position, stage | step << 8, choice], [bits & MASK, bits >> 32])[token & 3]
    uniform = min((word + 0.5) / 2**32, 1 - 2**-24)
    noise = one_row(seed, position, stage, step, choice, 201)[token]
    assert float(noise) == pytest.approx(-math.log(-math.log1p(-uniform)), rel=1e-5, abs=1e-5)


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(SEEDS, st.integers(0, 5000), st.sampled_from(list(Stage)), st.integers(0, 63)),
        min_size=1,
        max_size=40,
    ),
    vocab=st.integers(1, 131),
)
def test_a_row_is_bit_identical_whatever_the_others_are(rows: list[tuple[int, int, Stage, int]], vocab: int) -> None:
    seeds = torch.tensor([seed_bits(row[0]) for row in rows])
    positions, stages, steps = (torch.tensor([int(row[index]) for row in rows]) for index in (1, 2, 3))
    together = gumbel_noise(seeds, positions, stages, steps, torch.zeros_like(seeds), vocab)
    assert together.shape == (len(rows), vocab)
    assert together.isfinite().all()
    for index, (seed, position, stage, step) in enumerate(rows):
        assert torch.equal(together[index], one_row(seed, position, stage, step, 0, vocab))


def test_a_long_batch_is_cut_in_pieces_without_a_trace() -> None:
    """700 rows of 754 tokens are more than one piece of work; 5000 tokens begin with the same noise as 754."""
    seeds = torch.arange(700)
    zeros = torch.zeros(700, dtype=torch.int64)
    together = gumbel_noise(seeds, zeros, zeros, zeros, zeros, 754)
    for index in (0, 1, 346, 347, 348, 699):
        assert torch.equal(together[index], one_row(index, 0, 0, 0, 0, 754))
    assert torch.equal(one_row(3, 0, 0, 0, 0, 5000)[:754], one_row(3, 0, 0, 0, 0, 754))


def test_noise_of_single_tokens_is_the_same() -> None:
    seeds, zeros = torch.tensor([5, 5, 2**62, -3]), torch.zeros(4, dtype=torch.int64)
    positions, tokens = torch.tensor([0, 9, 9, 9]), torch.tensor([0, 201, 77, 130_999])
    single = gumbel_noise_at(seeds, positions, zeros, zeros, zeros, tokens)
    whole = gumbel_noise(seeds, positions, zeros, zeros, zeros, 131_072)
    assert torch.equal(single, whole.gather(1, tokens[:, None])[:, 0])


def test_every_number_of_the_counter_changes_the_noise() -> None:
    base = {"seed": 7, "position": 5, "stage": 1, "step": 2, "choice": 0}
    drawn = [one_row(**base, vocab=64)]
    for name, value in (("seed", 7 + 2**40), ("position", 6), ("stage", 2), ("step", 3), ("choice", 1)):
        drawn.append(one_row(**{**base, name: value}, vocab=64))
    for first in range(len(drawn)):
        for second in range(first):
            assert (drawn[first] == drawn[second]).sum() == 0


def test_seeds_keep_their_64_bits() -> None:
    assert seed_bits(0) == 0
    assert seed_bits(2**63 - 1) == 2**63 - 1
    assert seed_bits(2**64 - 1) == -1
    assert seed_bits(2**63) == -(2**63)
    assert seed_bits(-(2**63)) == -(2**63)
