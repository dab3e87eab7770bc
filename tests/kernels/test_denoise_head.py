"""The denoise head in plain PyTorch: against float64 loops over the words of the rules, and the engine's own choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.noise import Stage
from engine.sampling import RandomRows, pick
from kernels import denoise_head as module
from kernels.combine import combine, finish
from kernels.denoise_head import denoise_head, head_partials
from kernels.row_statistics import RowRules, partials_torch
from tests.kernels.head_cases import MASK_ID, check, random_case


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    vocab=st.integers(12, 150),
    banned=st.integers(0, 3),
    sampled=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_equals_the_rules_in_float64(
    seed: int, rows: int, vocab: int, banned: int, sampled: bool, dtype: torch.dtype
) -> None:
    case = random_case(seed, rows, vocab, banned=banned, sampled=sampled, dtype=dtype)
    check(denoise_head(case.hidden, case.weight, case.rules), case.logits, case.rules)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32), shards=st.sampled_from([2, 4]), sampled=st.booleans(), order=st.permutations(range(4))
)
def test_shards_of_the_vocabulary_combine_to_the_same_answer(
    seed: int, shards: int, sampled: bool, order: list[int]
) -> None:
    case = random_case(seed, 4, 128, sampled=sampled)
    size = 128 // shards
    ranks = [
        combine(head_partials(case.hidden, case.weight[first : first + size], case.rules, first), case.rules)
        for first in range(0, 128, size)
    ]
    gathered = torch.cat([ranks[rank] for rank in order if rank < shards], dim=-1)
    assert gathered.shape == (case.rules.fields, 4, shards)
    check(finish(gathered, case.rules), case.logits, case.rules)
    nested = torch.cat([combine(gathered[..., :1], case.rules), combine(gathered[..., 1:], case.rules)], dim=-1)
    check(finish(nested, case.rules), case.logits, case.rules)


@pytest.mark.parametrize("sampled", [False, True])
def test_chunks_of_a_small_scratch_change_nothing(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setattr(module, "SCRATCH_ELEMENTS", 100)
    case = random_case(3, 3, 101, sampled=sampled)
    partials = head_partials(case.hidden, case.weight, case.rules)
    assert partials.shape == (case.rules.fields, 3, 4)
    check(finish(partials, case.rules), case.logits, case.rules)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), greedy=st.booleans())
def test_chooses_what_the_engine_chooses(seed: int, greedy: bool) -> None:
    """`pick` on the same logits: equal tokens but for gaps below 1e-5, equal confidences."""
    case = random_case(seed, 6, 90, sampled=not greedy)
    logits = case.hidden @ case.weight.T
    random = None
    if case.rules.noise is not None:
        noise = case.rules.noise
        rows = (noise.temperature > 0).nonzero()[:, 0]
        places = noise.places.long()
        random = RandomRows(
            rows=rows,
            temperature=noise.temperature[rows],
            top_k=torch.zeros(len(rows), dtype=torch.int64),
            top_p=torch.ones(len(rows)),
            seeds=noise.seeds[rows],
            positions=noise.positions.long()[rows],
            stages=(places & 255)[rows],
            steps=(places >> 8)[rows],
            choices=noise.choices.long()[rows],
            tempered=noise.tempered[rows],
        )
        assert set((places & 255).tolist()) <= {int(stage) for stage in Stage}
        random = random if len(rows) else None
    places_banned = (case.rules.banned >= 0).nonzero(as_tuple=True)
    banned = (places_banned[0], case.rules.banned[places_banned])
    tokens, confidence = pick(logits, MASK_ID, random, banned)
    got = denoise_head(case.hidden, case.weight, case.rules)
    close_calls = check(got, case.logits, case.rules)
    assert int((tokens != got.tokens).sum()) <= close_calls
    same = tokens == got.tokens
    torch.testing.assert_close(got.confidence[same], confidence[same], rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lowest_id_and_the_mask_id_counts_in_the_softmax() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0, 3.0, 2.0, 9.0]])
    rules = RowRules(5, torch.tensor([[-1]]), torch.tensor([3]))
    got = finish(partials_torch(logits, 0, rules), rules)
    assert got.tokens.tolist() == [1]
    assert got.margin.tolist() == [0.0]
    torch.testing.assert_close(got.confidence, logits.softmax(-1)[:, 1])
    torch.testing.assert_close(got.given_logprob, logits.log_softmax(-1)[:, 3])
    banned = RowRules(5, torch.tensor([[3, 1]]), torch.tensor([-1]))
    got = finish(partials_torch(logits, 0, banned), banned)
    assert got.tokens.tolist() == [4]
    assert got.margin.tolist() == [1.0]
    torch.testing.assert_close(got.confidence, logits.softmax(-1)[:, 4])
    assert got.given_ratio.tolist() == [float("-inf")]


def test_broken_rows_say_so_and_leave_the_others_alone() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(4, 1)
    logits[0, 2] = float("nan")
    logits[1, 1] = float("inf")
    logits[2, :3] = float("-inf")
    rules = RowRules(0, torch.empty(4, 0, dtype=torch.int64), torch.full((4,), 3))
    for parts in (1, 2, 4):
        size = 4 // parts
        split = [partials_torch(logits[:, at : at + size], at, rules) for at in range(0, 4, size)]
        got = finish(torch.cat(split, dim=-1), rules)
        assert got.tokens.tolist() == [2, 1, 3, 3]
        assert got.confidence.isnan().tolist() == [True, True, False, False]
        assert got.entropy.isnan().tolist() == [True, True, False, False]
        assert got.confidence[2] == 1.0
        assert got.entropy[2] == 0.0
        assert got.margin[2] == float("inf")
        torch.testing.assert_close(got.confidence[3], logits[3].softmax(-1)[3])


def test_refuses_ids_that_float32_cannot_tell_apart() -> None:
    case = random_case(1, 1, 12)
    with pytest.raises(ValueError, match="vocabulary of 16777217 tokens"):
        head_partials(case.hidden, case.weight, case.rules, (1 << 24) - 11)


def test_no_rows_are_no_statistics() -> None:
    case = random_case(1, 0, 12)
    assert denoise_head(case.hidden, case.weight, case.rules).tokens.shape == (0,)
