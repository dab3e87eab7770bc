"""Layers with weights in FP8: the product, the model around it, its memory, and which calibration counts for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ValidationError

from deployments.quality import read_quality_map
from deployments.settings import AppArgs
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import weight_bytes
from engine.config import EngineConfig
from engine.engine import load_ladder
from engine.llm import LLM
from engine.model.fp8_linear import Fp8Linear
from engine.request import GenerationOptions
from kernels.quantize import quantize_rows_torch

TINY = Path(__file__).parents[2] / "engine" / "tiny" / "checkpoint"


def drawn(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_product_is_that_of_the_restored_numbers_and_near_the_exact_one() -> None:
    weight, x = drawn(96, 160, 1), drawn(7, 160, 2)
    product = Fp8Linear(weight)(x)
    restored = [quantize_rows_torch(side).restored(torch.float64) for side in (x, weight)]
    torch.testing.assert_close(product.double(), restored[0] @ restored[1].T, atol=1e-4, rtol=1e-4)
    exact = x.double() @ weight.double().T
    assert (product.double() - exact).norm() / exact.norm() < 0.05


@pytest.mark.skipif(torch.__version__ < "2.13", reason="earlier CPU builds have no product with scales per row")
def test_the_gpus_call_means_the_same_product() -> None:
    """`torch._scaled_mm` with a scale per row and per output, as on a GPU, computed by this CPU."""
    weight, x = quantize_rows_torch(drawn(96, 160, 1)), quantize_rows_torch(drawn(7, 160, 2))
    got = torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scales, scale_b=weight.scales.t().contiguous(), out_dtype=torch.float32
    )
    want = x.restored(torch.float64) @ weight.restored(torch.float64).T
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    product, x = Fp8Linear(drawn(96, 160, 3)), drawn(40, 160, 4)
    assert product.rows.fewest is not None
    whole = product(x)
    for count in (product.rows.fewest, 8, 17, 32):
        assert torch.equal(product(x[3 : 3 + count]), whole[3 : 3 + count])


@pytest.fixture(scope="module")
def fp8() -> LLM:
    return LLM(TINY, EngineConfig(quantization="fp8", threads=1, kv_tokens=4096))


def test_the_shipped_model_still_answers_rightly(fp8: LLM) -> None:
    question = [{"role": "user", "content": "Reverse this list:\nhouse\nbottle\nbridge"}]
    for fields in ({"decoding": "ar"}, {"decoding": "self_speculation"}, {"decoding": "diffusion", "threshold": 0.9}):
        options = GenerationOptions(max_tokens=32, temperature=0, **fields)
        assert fp8.generate([question], options)[0].text == "bridge\nbottle\nhouse"


def test_self_speculation_is_ar_in_fp8_too(fp8: LLM) -> None:
    prompt = [1, *range(300, 330)]
    options = [
        GenerationOptions(decoding="ar", max_tokens=48, temperature=0),
        GenerationOptions(decoding="self_speculation", block_length=16, max_tokens=48, temperature=0),
    ]
    ar, drafted = fp8.generate([prompt, prompt], options)
    assert ar.token_ids == drafted.token_ids


def test_what_was_measured_without_fp8_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    assert load_ladder(TINY)
    assert load_ladder(TINY, "fp8") == ()
    assert "measured with quantization none, not fp8" in caplog.text
    assert read_quality_map(TINY, 32).ladder
    assert read_quality_map(TINY, 32, "fp8").ladder == ()
    assert read_quality_map(TINY, 32, "fp8").temperature is None


@pytest.mark.parametrize("settings", [EngineConfig, AppArgs])
@pytest.mark.parametrize("other", [{"quantization": "fp8"}, {"tp": 2}])
def test_invariance_is_refused_where_it_cannot_be_kept(settings: type[BaseModel], other: dict[str, object]) -> None:
    assert settings.model_validate({"batch_invariant": True})
    with pytest.raises(ValidationError, match=r"batch_invariant is true with .*; allowed: quantization 'none'"):
        settings.model_validate({"batch_invariant": True, **other})


@pytest.mark.parametrize("settings", [EngineConfig, AppArgs])
@pytest.mark.parametrize("other", [{"quantization": "fp8"}, {"batch_invariant": True}])
def test_narrow_products_are_refused_where_others_are_made(settings: type[BaseModel], other: dict[str, object]) -> None:
    assert settings.model_validate({"narrow_products": True, "tp": 2})
    with pytest.raises(ValidationError, match=r"narrow_products is true with .*; allowed: quantization 'none'"):
        settings.model_validate({"narrow_products": True, **other})


def test_memory_of_a_part_in_fp8() -> None:
    config = ModelConfig.from_dir(TINY)
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.q_size + 2 * config.kv_size
    for ranks in (1, 2):
        rows = (heads // ranks, hidden, 2 * inner // ranks, hidden)
        columns = (hidden, config.q_size // ranks, hidden, inner // ranks)
        products = sum(out * into for out, into in zip(rows, columns, strict=True))
        saved = config.num_layers * (products - 4 * sum(rows))
        whole, part = (weight_bytes(config, "bfloat16", ranks, None, kind) for kind in ("none", "fp8"))
        assert whole - part == saved
