"""Who may begin before the kernel before it has ended. That such kernels wait before they read is in `test_aot.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kernels import overlap
from kernels.overlap import VARIABLE, overlapping

APART = {"OVERLAPS": False}


def on_gpu(name: str) -> Any:
    return cast(Any, SimpleNamespace(is_cuda=True, device=name))


def test_kernels_overlap_where_it_is_asked_for_and_a_gpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"an older one": (8, 9), "hopper": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.get)
    overlap._can_overlap.cache_clear()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert overlapping(on_gpu("hopper")) == APART
    monkeypatch.setenv(VARIABLE, "1")
    assert overlapping(on_gpu("hopper")) == {"OVERLAPS": True, "launch_pdl": True}
    assert overlapping(on_gpu("an older one")) == APART
    assert overlapping(torch.empty(0)) == APART
    monkeypatch.setenv(VARIABLE, "0")
    assert overlapping(on_gpu("hopper")) == APART
    overlap._can_overlap.cache_clear()


def test_another_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match="STEPDIAL_OVERLAP is 'yes'; allowed: 0, 1"):
        overlapping(torch.empty(0))
