"""From a directory to an executor: where it computes, and how much K/V it holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.checkpoint.config import ModelConfig
from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.group.wire import RankSpec
from engine.loading import check_device, device_of, load_executor, product_of
from engine.model.fixed_linear import FixedLinear
from engine.model.linear import Linear
from engine.model.narrow_linear import NarrowLinear
from engine.model.transformer import Product
from kernels.switch import VARIABLE

TINY = Path(__file__).parents[2] / "engine" / "tiny" / "checkpoint"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"device is 'cuda', and this process sees no GPU; allowed here: 'cpu'"):
        load_executor(TINY, ModelConfig.from_dir(TINY), EngineConfig(device="cuda"))
    check_device("cpu", narrow_products=True)


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Ray a rank sees its own alone; started by itself, it sees all of the machine's."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [device_of("cuda", rank).index for rank in range(2)] == [0, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [device_of("cuda", rank).index for rank in range(4)] == [0, 1, 2, 3]
    assert device_of("cpu", 3) == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "made"),
    [({}, Linear), ({"narrow_products": True}, NarrowLinear), ({"batch_invariant": True}, FixedLinear)],
)
def test_products_of_their_own_are_for_kernels(
    asked: dict[str, bool], made: type[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank is told of them."""
    spec = RankSpec("", 2, "float32", 1, "gloo", "cpu", "", **asked)
    spec = RankSpec.from_bytes(spec.to_bytes())
    assert product_of(spec, torch.device("cpu")) is Linear
    monkeypatch.setenv(VARIABLE, "triton")
    assert product_of(spec, torch.device("cpu")) is made


@pytest.mark.parametrize(("major", "shared_kib", "enough"), [(8, 163, False), (9, 227, True), (12, 99, False)])
def test_narrow_products_want_a_gpu_that_has_what_they_run_on(
    major: int, shared_kib: int, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(major=major, minor=0, shared_memory_per_multiprocessor=shared_kib << 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: found)
    check_device("cuda", narrow_products=False)
    if enough:
        check_device("cuda", narrow_products=True)
        return
    said = rf"{major}\.0 with {shared_kib} KiB .*; allowed: 9\.0 and 104 KiB at least"
    with pytest.raises(CheckpointError, match=said):
        check_device("cuda", narrow_products=True)


@pytest.mark.parametrize(("dtype", "found"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_auto_is_float32_on_a_cpu(dtype: str, found: torch.dtype) -> None:
    config = EngineConfig.model_validate({"dtype": dtype, "kv_tokens": 64})
    executor = load_executor(TINY, ModelConfig.from_dir(TINY), config)
    assert executor.model.dtype is found
    assert executor.kv.shape[1] == (64 // executor.page_size + 1) * executor.page_size
