"""Tensor parallelism: which part of every tensor a rank holds, and the sums and gathers that make the parts one model.

Column-parallel layers (q, k, v, gate, up) hold a part of their outputs, row-parallel layers (o_proj, down_proj) a part
of their inputs, so that a layer needs two sums: after o_proj and after down_proj. Query and K/V heads go with their
projections. Embedding and head hold a part of the vocabulary. Norms are whole on every rank.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.checkpoint.config import ModelConfig

Backend = Literal["gloo", "nccl"]

COLLECTIVE_TIMEOUT_S = 300.0
"""So long a rank waits for another inside a forward. One that died is noticed at once; this is for one that hangs."""

_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "diffusion_head")
_COLUMNS = ("o_proj", "down_proj", "lora_A")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `rank` of `size` equal parts."""

    rank: int = 0
    size: int = 1

    def part(self, length: int) -> slice:
        """This rank's part of an axis. Raises ValueError where the axis cannot be cut evenly."""
        if length % self.size:
            raise ValueError(f"{self.size} ranks do not divide an axis of {length}")
        share = length // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def slices(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """This rank's part of the checkpoint tensor `name`, a slice for each axis (contract 2.1 and 2.2)."""
        axis = split_axis(name)
        return tuple(self.part(length) if place == axis else slice(0, length) for place, length in enumerate(shape))


WHOLE = Shard()


def split_axis(name: str) -> int | None:
    """The axis of the checkpoint tensor `name` that ranks divide among them; None where each holds all of it."""
    layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return 0 if layer in _ROWS else 1 if layer in _COLUMNS else None


def rank_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shapes of one rank's part: its heads, its part of the MLP and of the vocabulary."""
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=config.num_kv_heads // size,
        intermediate_size=config.intermediate_size // size,
        vocab_size=config.vocab_size // size,
    )


class _Options(NamedTuple):
    """How the collectives run."""

    reduce: Any
    gather: Any
    broadcast: Any

    @staticmethod
    def in_line() -> _Options:
        """On the stream that computes: on one of their own, which NCCL takes by default, each would have to be waited
        for at both ends."""
        from torch._C import _distributed_c10d as c10d

        options = _Options(c10d.AllreduceOptions(), c10d.AllgatherOptions(), c10d.BroadcastOptions())
        for one in options:
            one.asyncOp = False
        return options


class TensorParallel:
    """One rank's place in its group, and the group's collectives. Alone (size 1) they cost nothing.

    All ranks call the same collectives in the same order with the same shapes: the step data that reaches them all
    determines both.

    Attributes:
        shard: which rank of how many.
    """

    def __init__(self, shard: Shard = WHOLE) -> None:
        self.shard = shard
        self._group: Any = None
        self._options: Any = None
        self._ordered = True

    def connect(self, store: Any, backend: Backend, device: torch.device) -> None:
        """Meets the other ranks at `store` (a torch.distributed store that all of them share).

        `device`: where the exchanged tensors are. gloo and NCCL listen on the loopback address only: a group's ranks
        are processes of one machine.

        Raises RuntimeError when they do not meet in time.
        """
        rank, size = self.shard.rank, self.shard.size
        if size > 1:
            self._group = _process_group(store, rank, size, backend)
            self._options = _Options.in_line()
            self._ordered = backend == "gloo"
            # NCCL makes its connections at the first collective of each kind: better now than under the first request.
            one = self.all_reduce(torch.ones(1, device=device))
            self.broadcast(self.all_gather(one)[0])

    def abort(self) -> None:
        """Ends exchanges that wait for a rank that is gone, from any thread; none is possible after it.

        gloo ends them itself. NCCL's kernels would wait for ever; this ends them at once, but returns only when all
        graphs that exchanges were recorded in are gone, so nobody waits for that.
        """
        if self._group is not None and not self._ordered:
            threading.Thread(target=self._group.abort, name="stepdial-abort", daemon=True).start()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on each.

        With gloo the parts are added in the order of the ranks, in float32: a row's sum then depends neither on its
        batch nor on which rank asks, and for the few rows of a canvas this is faster than gloo's own sum. NCCL adds in
        an order of its own.
        """
        if self.shard.size == 1:
            return x
        if not self._ordered:
            _finish(self._group.allreduce([x], self._options.reduce))
            return x
        first, *others = self._parts(x)
        total = first.float()
        for part in others:
            total += part
        return total.to(x.dtype)

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, the same bits on each; of the other ranks' only shape and dtype count."""
        if self.shard.size > 1:
            _finish(self._group.broadcast([x], self._options.broadcast))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' `x`, stacked in the order of the ranks: `[size, *x.shape]`."""
        if self.shard.size == 1:
            return x[None]
        if self._ordered:
            return torch.stack(self._parts(x))
        gathered = x.new_empty((self.shard.size * x.shape[0], *x.shape[1:]))
        _finish(self._group._allgather_base(gathered, x.contiguous(), self._options.gather))
        return gathered.view(self.shard.size, *x.shape)

    def join_columns(self, x: Tensor) -> Tensor:
        """`x` `[rows, columns]` of all ranks side by side, in the order of the ranks: `[rows, size * columns]`."""
        if self.shard.size == 1:
            return x
        return self.all_gather(x).transpose(0, 1).reshape(x.shape[0], -1)

    def _parts(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.shard.size)]
        self._group.allgather([parts], [x.contiguous()]).wait()
        return parts


def _finish(work: Any) -> None:
    """Waits for an exchange; NCCL gives nothing to wait for where it runs on the stream that computes."""
    if work is not None:
        work.wait()


def file_store(file: Path, size: int) -> Any:
    """The store in a file at which `size` ranks of one machine meet."""
    from torch import distributed

    return distributed.FileStore(str(file), size)  # type: ignore[attr-defined]


def default_backend(device: str) -> Backend:
    """NCCL between GPUs, gloo between CPU processes."""
    return "nccl" if device == "cuda" else "gloo"


def _process_group(store: Any, rank: int, size: int, backend: Backend) -> Any:
    """A process group of its own, not torch's one default group of the process: engines must not share state.

    The NCCL branch was never run: this was built where there are no two GPUs.
    """
    from torch import distributed

    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    if backend == "nccl":
        # Where its ranks find each other; they are processes of one machine.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        nccl = distributed.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        return distributed.ProcessGroupNCCL(store, rank, size, nccl)
    gloo = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = timeout
    gloo._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return distributed.ProcessGroupGloo(store, rank, size, gloo)
