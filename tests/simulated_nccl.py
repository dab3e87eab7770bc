"""NCCL between simulated GPUs, each in a process of its own: gloo carries the numbers.

What NCCL refuses, this refuses: tensors of the CPU. A graph keeps an exchange and repeats it when it is replayed, so
that ranks whose graphs do not fit together wait for each other for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed

from tests.simulated_cuda import CudaTensor

DEADLOCK = timedelta(seconds=60)


class SimulatedNccl:
    """In the place of `torch.distributed.ProcessGroupNCCL`."""

    Options = SimpleNamespace

    def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
        gloo = distributed.ProcessGroupGloo._Options()
        gloo._timeout = DEADLOCK
        gloo._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        self._gloo = distributed.ProcessGroupGloo(store, rank, size, gloo)

        self.aborted = False

    def allreduce(self, tensors: list[Tensor], options: Any) -> None:
        (x,) = tensors
        _done(options, lambda inner: self._gloo.allreduce([inner]).wait(), x)

    def broadcast(self, tensors: list[Tensor], options: Any) -> None:
        (x,) = tensors
        _done(options, lambda inner: self._gloo.broadcast([inner], options).wait(), x)

    def _allgather_base(self, to: Tensor, x: Tensor, options: Any) -> None:
        _done(options, lambda *inner: self._gloo._allgather_base(*inner).wait(), to, x)

    def abort(self) -> None:
        self.aborted = True


@contextlib.contextmanager
def nccl() -> Iterator[None]:
    """Inside `simulated`: a build of torch that has NCCL."""
    with patch.object(distributed, "ProcessGroupNCCL", SimulatedNccl, create=True):
        yield


def _done(options: Any, exchange: Callable[..., Any], *tensors: Tensor) -> None:
    """Runs it, and keeps it where a graph is recorded. On a stream of its own a graph would need both ends; on the one
    that computes there is nothing to wait for, and NCCL gives none."""
    if options.asyncOp:
        raise RuntimeError("on a stream of its own")
    there = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    if len(there) < len(tensors):
        raise RuntimeError("No backend type associated with device type cpu")
    inner = [tensor.inner for tensor in there]
    if not all(tensor.is_contiguous() for tensor in inner):
        raise RuntimeError("Tensors must be contiguous")

    def run() -> None:
        with torch.inference_mode():
            exchange(*inner)

    recording = there[0].gpu.recording
    run()
    if recording is not None:
        recording.append(run)
