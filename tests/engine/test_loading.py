"""From a directory to an executor: where it computes, and how much K/V it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.config import ModelConfig
from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.loading import check_device, device_of, load_executor

TINY = Path(__file__).parents[2] / "engine" / "tiny" / "checkpoint"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"device is 'cuda', and this process sees no GPU; allowed here: 'cpu'"):
        load_executor(TINY, ModelConfig.from_dir(TINY), EngineConfig(device="cuda"))
    check_device("cpu")


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Ray a rank sees its own alone; started by itself, it sees all of the machine's."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [device_of("cuda", rank).index for rank in range(2)] == [0, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [device_of("cuda", rank).index for rank in range(4)] == [0, 1, 2, 3]
    assert device_of("cpu", 3) == torch.device("cpu")


@pytest.mark.parametrize(("dtype", "found"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_auto_is_float32_on_a_cpu(dtype: str, found: torch.dtype) -> None:
    config = EngineConfig.model_validate({"dtype": dtype, "kv_tokens": 64})
    executor = load_executor(TINY, ModelConfig.from_dir(TINY), config)
    assert executor.model.dtype is found
    assert executor.kv.shape[1] == (64 // executor.page_size + 1) * executor.page_size
