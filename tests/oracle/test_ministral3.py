"""The engine's model against transformers' Ministral-3, which is an independent implementation of the same layers.

Causal mode is its ordinary forward; an explicit all-zero 4-D mask makes it bidirectional (contract section 11).
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Ministral3ForCausalLM

from benchmarks.reference_loops import ministral3
from engine.config import EngineConfig
from engine.executor import Executor
from engine.llm import LLM
from engine.request import GenerationOptions
from tests.oracle.random_model import executor, random_tensors, raw_config, save_checkpoint, segment

TOLERANCE = 5e-5  # float32; logits are of order 1
SHAPES = {
    "theta1e6": raw_config(1e6),
    "theta1e9": raw_config(1e9),
    "theta1e6-scaled": raw_config(1e6, original_max=40),
    "theta1e9-scaled": raw_config(1e9, original_max=40),
    "base-factor": raw_config(1e6) | {"rope_parameters": raw_config(1e6)["rope_parameters"] | {"factor": 0.25}},
}


def oracle(raw: dict[str, Any], tensors: dict[str, Tensor]) -> Ministral3ForCausalLM:
    """transformers' model on the very same tensors (shared, not copied)."""
    with torch.device("meta"):
        model = ministral3(raw)
    names = {name.replace("encoder.", "model.").replace("diffusion_head.", "lm_head."): name for name in tensors}
    model.load_state_dict({name: tensors[source] for name, source in names.items()}, assign=True)
    # Buffers are not in the state dict: made again where the weights are.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def random_ids(count: int, vocab: int = 160) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def run_at(runner: Executor, tokens: list[int], causal: bool, offset: int = 0) -> Tensor:
    """Logits of a fresh sequence whose positions are moved by `offset`, which its slots and reach are not."""
    batch = runner.batch([segment(tokens, 0, causal)])
    batch.positions = batch.positions + offset
    batch.last_position += offset
    return runner.run(batch)


def zero_mask(rows: int, keys: int) -> Tensor:
    return torch.zeros(1, 1, rows, keys)


def causal_mask(rows: int) -> Tensor:
    return torch.full((rows, rows), float("-inf")).triu(1)[None, None]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request: pytest.FixtureRequest) -> tuple[Executor, Ministral3ForCausalLM]:
    raw = SHAPES[request.param]
    tensors = random_tensors(raw)
    return executor(raw, tensors), oracle(raw, tensors)


@torch.inference_mode()
def test_causal_logits_equal_transformers(pair: tuple[Executor, Ministral3ForCausalLM]) -> None:
    runner, model = pair
    ids = random_ids(150)
    expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(run_at(runner, ids, causal=True), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_bidirectional_logits_equal_transformers_with_a_zero_mask(
    pair: tuple[Executor, Ministral3ForCausalLM],
) -> None:
    runner, model = pair
    ids = random_ids(96)
    expected = model(torch.tensor([ids]), attention_mask=zero_mask(96, 96)).logits[0]
    got = run_at(runner, ids, causal=False)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    assert (got - run_at(runner, ids, causal=True)).abs().max() > 0.1


@torch.inference_mode()
@pytest.mark.parametrize("context", [1, 31, 32, 45, 130])
def test_canvas_on_cached_context_equals_transformers(
    pair: tuple[Executor, Ministral3ForCausalLM], context: int
) -> None:
    runner, model = pair
    ids, canvas = random_ids(context), [7] + [100] * 31
    cache = DynamicCache(config=model.config)
    model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    expected = model(
        torch.tensor([canvas]), attention_mask=zero_mask(32, context + 32), past_key_values=cache, use_cache=True
    ).logits[0]
    runner.run(runner.batch([segment(ids, 0, True)]))
    got = runner.run(runner.batch([segment(canvas, context, False)]))
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("offset", [16_370, 32_760, 65_520, 131_060, 262_100])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_logits_at_large_positions_equal_transformers(
    pair: tuple[Executor, Ministral3ForCausalLM], offset: int, causal: bool
) -> None:
    runner, model = pair
    ids = random_ids(40)
    positions = torch.arange(offset, offset + 40)[None]
    mask = causal_mask(40) if causal else zero_mask(40, 40)
    expected = model(torch.tensor([ids]), position_ids=positions, attention_mask=mask).logits[0]
    torch.testing.assert_close(run_at(runner, ids, causal, offset), expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module", params=[1e6, 1e9], ids=["theta1e6", "theta1e9"])
def llm_and_oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Any]:
    raw = raw_config(request.param, original_max=40, max_position_embeddings=1024)
    tensors = random_tensors(raw, seed=3)
    path = save_checkpoint(tmp_path_factory.mktemp("random"), raw, tensors)
    return LLM(path, EngineConfig(dtype="float32", threads=1, kv_tokens=8192)), oracle(raw, tensors)


def test_ar_equals_transformers_generate(llm_and_oracle: tuple[LLM, Ministral3ForCausalLM]) -> None:
    llm, model = llm_and_oracle
    prompts = [random_ids(length) for length in (3, 31, 32, 33, 70)]
    outputs = llm.generate(prompts, GenerationOptions(decoding="ar", temperature=0, max_tokens=60), progress=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=60,
            eos_token_id=11,
            pad_token_id=11,
            suppress_tokens=[100],  # the mask id is never a candidate
        )[0, len(prompt) :].tolist()
        assert output.token_ids == generated


def test_self_speculation_equals_ar_at_temperature_0(llm_and_oracle: tuple[LLM, Ministral3ForCausalLM]) -> None:
    llm, _ = llm_and_oracle
    prompts = [random_ids(length) for length in (3, 33, 70)]
    ar = llm.generate(prompts, GenerationOptions(decoding="ar", temperature=0, max_tokens=24), progress=False)
    for length, threshold in ((1, None), (2, None), (7, 0.3), (32, None)):
        options = GenerationOptions(
            decoding="self_speculation", temperature=0, max_tokens=24, block_length=length, threshold=threshold
        )
        outputs = llm.generate(prompts, options, progress=False)
        assert [output.token_ids for output in outputs] == [output.token_ids for output in ar]


@torch.inference_mode()
def test_one_layer_of_14b_in_its_real_width() -> None:
    raw = raw_config(
        1e9, hidden_size=5120, intermediate_size=16384, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        num_hidden_layers=1, vocab_size=256,
    )  # fmt: skip
    tensors = random_tensors(raw)
    runner, model = executor(raw, tensors, pages=4), oracle(raw, tensors)
    ids, canvas = random_ids(40, 256), [7] + [100] * 31
    cache = DynamicCache(config=model.config)
    expected = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0]
    got = runner.run(runner.batch([segment(ids, 0, True)]))
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    expected = model(
        torch.tensor([canvas]), attention_mask=zero_mask(32, 72), past_key_values=cache, use_cache=True
    ).logits[0]
    got = runner.run(runner.batch([segment(canvas, 40, False)]))
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
