"""The whole model on its kernels, in Triton's interpreter, against the model on PyTorch. Run by `test_device_batch.py`
in a process of its own (`tests/kernels/isolated.py`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.batch import Segment
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.weights import DraftAdapter
from engine.executor import Executor
from engine.graphs import Record
from engine.model.transformer import Transformer
from kernels.reach_work import SplitRule
from kernels.switch import VARIABLE
from tests.oracle.random_model import PAGE, random_tensors, raw_config

LAYERS = 2
ORIGINAL = 48
"""Positions from here on have a query scale above 1."""


def executor(dtype: torch.dtype, record: Record | None = None, layers: int = LAYERS) -> Executor:
    raw = raw_config(original_max=ORIGINAL, num_hidden_layers=layers)
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(raw, seed=5).items()}
    draw = torch.Generator().manual_seed(8)
    low_rank = [
        (0.1 * torch.randn(4, 128, generator=draw), 0.1 * torch.randn(96, 4, generator=draw)) for _ in range(layers)
    ]
    model = Transformer(ModelConfig.from_dict(raw), tensors, DraftAdapter(tuple(low_rank), 4.0))
    made = Executor(model, 40, PAGE, splits=SplitRule(keys=64))
    if record is not None:
        made.record_graphs(record)
    return made


def segment(draw: torch.Generator, start: int, rows: int, causal: bool, drafted: bool, pages: list[int]) -> Segment:
    tokens = torch.randint(0, 160, (rows,), generator=draw).tolist()
    return Segment(tokens, start, causal, drafted, list(range(rows)), pages)


def forwards(dtype: torch.dtype, on_kernels: bool) -> tuple[list[Tensor], Tensor]:
    """Logits of prefills and of batches that mix every kind of segment, and the K/V afterwards."""
    draw = torch.Generator().manual_seed(3)
    model = executor(dtype)
    first, second, third = [3, 9, 1, 7, 5], [2, 8], [6]
    batches = [
        [segment(draw, 0, 140, True, False, first), segment(draw, 0, 31, True, False, second)],
        [
            segment(draw, 140, 8, False, True, first),
            segment(draw, 31, 1, True, False, second),
            segment(draw, 0, 13, True, False, third),
        ],
        [segment(draw, 140, 8, True, False, first), segment(draw, 32, 16, False, False, second)],
    ]
    laid_out = [model.batch(segments) for segments in batches]
    assert all((batch.work is not None) is on_kernels and bool(batch.groups) is not on_kernels for batch in laid_out)
    logits = [model.run(batch) for batch in laid_out]
    return logits, model.kv[:, PAGE:]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float16, 4e-2)])
def test_equals_the_model_on_pytorch(dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    got, kv = forwards(dtype, on_kernels=True)
    monkeypatch.setenv(VARIABLE, "torch")
    want, want_kv = forwards(torch.float32, on_kernels=False)
    for mine, other in zip(got, want, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, other, atol=bound * float(other.std()), rtol=bound)
    torch.testing.assert_close(kv.float(), want_kv, atol=bound, rtol=bound)
