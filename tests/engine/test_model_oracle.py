"""The model against values that do not come from it: the contract's golden tables, and what causality must mean."""

import pytest
import torch

from engine.checkpoint.config import RopeConfig
from engine.executor import Executor
from engine.model.rope import attention_factor, query_scale, yarn_frequencies
from tests.oracle.random_model import PAGE, executor, random_tensors, raw_config, segment


def rope(theta: float = 1e6, factor: float = 16.0) -> RopeConfig:
    return RopeConfig(theta, factor, 16384, 32.0, 1.0, 1.0, 1.0, 0.1)


# Index -> value of contract 3.2, per (theta, factor).
FREQUENCIES = {
    (1e6, 16.0): {1: 8.058421878e-01, 21: 1.015346367e-02, 28: 1.325179424e-03, 36: 4.961135334e-05, 63: 7.755861e-08},
    (1e9, 16.0): {1: 7.233941627e-01, 14: 9.906540917e-03, 19: 1.130899320e-03, 24: 5.930107079e-05, 63: 8.6398264e-11},
    (1e6, 0.25): {1: 8.058421878e-01, 21: 1.264244504e-02, 28: 5.719195408e-03, 36: 1.612368984e-03, 63: 4.963751e-06},
}


@pytest.mark.parametrize(("theta", "factor"), FREQUENCIES, ids=["3B-8B", "14B", "3B-Base"])
def test_frequencies_are_the_contracts_golden_values(theta: float, factor: float) -> None:
    frequencies = yarn_frequencies(rope(theta, factor), 128)
    assert frequencies.shape == (64,)
    assert frequencies[0] == 1.0
    for index, value in FREQUENCIES[theta, factor].items():
        assert frequencies[index].item() == pytest.approx(value, rel=3e-7), index


def test_attention_factor_is_one_for_the_released_mscales() -> None:
    assert attention_factor(rope()) == 1.0


def test_attention_factor_without_mscales_is_yarns_own() -> None:
    assert attention_factor(RopeConfig(1e6, 16.0, 16384)) == pytest.approx(1.2772588722)


def test_query_scale_is_the_contracts_golden_values() -> None:
    positions = torch.tensor([0, 16383, 16384, 32767, 32768, 65536, 131072, 262143])
    expected = torch.tensor([1, 1, 1.0693147, 1.0693147, 1.1098612, 1.1609438, 1.2197225, 1.2772589])
    torch.testing.assert_close(query_scale(positions, rope(), torch.float32)[:, 0, 0], expected, atol=1e-7, rtol=0)


def test_query_scale_in_bfloat16_rounds_as_released() -> None:
    scale = query_scale(torch.tensor([16384, 32768, 65536]), rope(), torch.bfloat16)
    assert scale.flatten().tolist() == [1.0703125, 1.109375, 1.1640625]


@pytest.fixture(scope="module")
def runner() -> Executor:
    raw = raw_config(1e9, original_max=40)
    return executor(raw, random_tensors(raw, seed=1))


IDS = torch.randint(0, 160, (70,), generator=torch.Generator().manual_seed(5)).tolist()
CANVAS = [7] + [100] * 31


def causal(runner: Executor, tokens: list[int], start: int = 0) -> torch.Tensor:
    return runner.run(runner.batch([segment(tokens, start, True)]))


@pytest.mark.parametrize("cut", [1, 7, 32, 33, 69])
def test_prefill_in_two_chunks_equals_one(runner: Executor, cut: int) -> None:
    whole = causal(runner, IDS)
    parts = torch.cat([causal(runner, IDS[:cut]), causal(runner, IDS[cut:], cut)])
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)


def test_a_later_token_changes_bidirectional_logits_only(runner: Executor) -> None:
    edited = [*IDS[:-1], (IDS[-1] + 1) % 160]
    assert torch.equal(causal(runner, IDS)[:-1], causal(runner, edited)[:-1])
    seen, changed = (runner.run(runner.batch([segment(ids, 0, False)])) for ids in (IDS, edited))
    assert (seen[:-1] - changed[:-1]).abs().max() > 1e-3


def test_canvas_leaves_cached_keys_and_values_alone(runner: Executor) -> None:
    causal(runner, IDS)
    cached = runner.kv[:, PAGE : PAGE + len(IDS)].clone()
    runner.run(runner.batch([segment(CANVAS, len(IDS), False)]))
    assert torch.equal(runner.kv[:, PAGE : PAGE + len(IDS)], cached)


def test_what_a_canvas_wrote_is_overwritten_by_the_commit(runner: Executor) -> None:
    block = list(range(20, 52))
    causal(runner, IDS)
    expected = causal(runner, block, len(IDS))
    kept = runner.kv[:, PAGE : PAGE + len(IDS) + 32].clone()
    runner.kv.zero_()
    causal(runner, IDS)
    runner.run(runner.batch([segment(CANVAS, len(IDS), False)]))
    assert torch.equal(causal(runner, block, len(IDS)), expected)
    assert torch.equal(runner.kv[:, PAGE : PAGE + len(IDS) + 32], kept)


def test_rejected_tokens_leave_no_trace(runner: Executor) -> None:
    causal(runner, IDS)
    expected = causal(runner, [21, 22, 23], len(IDS))
    causal(runner, [21, *range(60, 91)], len(IDS))
    assert torch.equal(causal(runner, [22, 23], len(IDS) + 1), expected[1:])


def test_committing_a_block_bidirectionally_would_change_all_layers_but_the_first(runner: Executor) -> None:
    block, at = list(range(20, 52)), slice(PAGE + len(IDS), PAGE + len(IDS) + 32)
    causal(runner, IDS)
    causal(runner, block, len(IDS))
    clean = runner.kv[:, at].clone()
    runner.run(runner.batch([segment(block, len(IDS), False)]))
    difference = (runner.kv[:, at] - clean).abs().amax((1, 2, 3, 4))
    assert difference[0] < 1e-6
    assert (difference[1:] > 0.01).all()
