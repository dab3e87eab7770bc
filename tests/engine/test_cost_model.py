"""The cost of a forward: what is fitted online is what was true, in spite of noise and stalls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cost_model import ForwardCost, ForwardCostModel
from engine.engine import load_cost_model
from engine.errors import CheckpointError

TRUTH = [
    ForwardCost(4e-3, 2e-4, 1e-4, 2e-7),
    ForwardCost(6e-3, 1e-5, 3.3e-5, 5e-9),
    ForwardCost(0.5e-3, 1e-4, 2e-5, 1e-6),
]
Forward = tuple[int, int, int, float]


def forwards(truth: ForwardCost, count: int, seed: int = 0, stalls: float = 0.03) -> list[Forward]:
    """(query tokens, context tokens, sequences, seconds) with 4% noise, and now and then a stall of 5 to 20 times."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        sequences = int(rng.choice([1, 2, 8, 32, 64]))
        tokens = sequences * int(rng.choice([1, 4, 16, 32]))
        context = int(sequences * rng.uniform(1, 2000))
        seconds = truth.seconds(tokens, context, sequences) * rng.lognormal(0, 0.04)
        made.append((tokens, context, sequences, seconds * (rng.uniform(5, 20) if rng.random() < stalls else 1)))
    return made


def fitted(observed: list[Forward]) -> ForwardCostModel:
    model = ForwardCostModel()
    for tokens, context, sequences, seconds in observed:
        model.observe(tokens, context, sequences, seconds)
    return model


@pytest.mark.parametrize("truth", TRUTH)
def test_known_coefficients_are_recovered_from_noisy_forwards_with_stalls(truth: ForwardCost) -> None:
    model = fitted(forwards(truth, 3000))
    for tokens, context, sequences in [(1, 100, 1), (8, 1000, 8), (32, 2000, 1), (256, 10_000, 16), (512, 60_000, 64)]:
        expected = truth.seconds(tokens, context, sequences)
        assert model.predict_s(tokens, context, sequences) == pytest.approx(expected, rel=0.12)
    assert model.cost.own_s(16, 500) == pytest.approx(truth.own_s(16, 500), rel=0.25)
    assert model.observations == 3000


@pytest.mark.parametrize("truth", TRUTH)
def test_a_twentieth_of_the_forwards_takes_longer_than_p95(truth: ForwardCost) -> None:
    model = fitted(forwards(truth, 3000, stalls=0))
    late = [seconds > model.predict_s(*shape, 0.95) for *shape, seconds in forwards(truth, 2000, 1, 0)]
    assert 0.02 <= np.mean(late) <= 0.10


def test_a_slower_machine_is_noticed() -> None:
    model = fitted(forwards(TRUTH[0], 1000))
    slower = ForwardCost(*(3 * value for value in TRUTH[0].to_dict().values()))
    for forward in forwards(slower, 1500, seed=2):
        model.observe(*forward)
    assert model.predict_s(32, 2000, 4) == pytest.approx(slower.seconds(32, 2000, 4), rel=0.15)


def test_a_crowd_of_single_tokens_costs_more_than_one_long_block() -> None:
    model = fitted(forwards(TRUTH[0], 3000))
    assert model.predict_s(32, 3200, 32) > 1.5 * model.predict_s(32, 3200, 1)


def test_saved_and_loaded_it_predicts_and_learns_as_before(tmp_path: Path) -> None:
    observed = forwards(TRUTH[0], 400)
    whole, half = fitted(observed), fitted(observed[:203])
    file = tmp_path / "cost.json"
    file.write_text(json.dumps(half.to_dict()))
    loaded = load_cost_model(file)
    assert loaded is not None
    assert loaded.predict_s(32, 500, 2, 0.95) == pytest.approx(half.predict_s(32, 500, 2, 0.95))
    assert loaded.observations == 203
    for forward in observed[203:]:
        loaded.observe(*forward)
    for quantile in (0.5, 0.95):
        assert loaded.predict_s(77, 900, 3, quantile) == pytest.approx(whole.predict_s(77, 900, 3, quantile))


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"base_s": "x"}'])
def test_a_file_that_is_no_cost_model_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cost.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=r"cost\.json is not a cost model"):
        load_cost_model(file)


def test_no_file_is_no_model(tmp_path: Path) -> None:
    assert load_cost_model(None) is None
    assert load_cost_model(tmp_path / "absent.json") is None


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2048), st.integers(1, 10**6), st.integers(1, 256), st.floats(1e-6, 10, allow_nan=False)
        ),
        max_size=120,
    ),
    st.integers(1, 2048),
    st.integers(1, 10**6),
    st.integers(1, 256),
)
@settings(max_examples=60)
def test_whatever_is_seen_predictions_are_positive_and_grow_with_load_and_quantile(
    observed: list[Forward], tokens: int, context: int, sequences: int
) -> None:
    model = fitted(observed)
    seconds = model.predict_s(tokens, context, sequences)
    assert seconds > 0
    assert model.predict_s(tokens + 100, context, sequences) >= seconds
    assert model.predict_s(tokens, context + 1000, sequences) >= seconds
    assert model.predict_s(tokens, context, sequences + 10) >= seconds
    assert model.predict_s(tokens, context, sequences, 0.95) >= seconds
    assert model.cost.own_s(tokens, context) >= 0
    json.dumps(model.to_dict(), allow_nan=False)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_duration_that_cannot_be_is_ignored(seconds: float) -> None:
    model = fitted(forwards(TRUTH[0], 100))
    before = model.to_dict()
    model.observe(10, 100, 1, seconds)
    assert model.to_dict() == before


def test_forwards_that_get_faster_with_tokens_give_no_negative_price() -> None:
    model = ForwardCostModel()
    for _ in range(200):
        model.observe(1, 10, 1, 0.02)
        model.observe(500, 5000, 1, 0.01)
    assert model.cost.own_s(1, 0) >= 0
    assert model.predict_s(5000, 50_000) > 0
