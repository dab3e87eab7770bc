"""All ranks of a group as threads of one process: the real collectives, without the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.distributed import HashStore

from engine.model.parallel import Shard, TensorParallel

T = TypeVar("T")


def on_ranks(size: int, work: Callable[[TensorParallel], T]) -> list[T]:
    """What `work` returns on each of `size` connected ranks. Raises the first rank's error."""
    store = HashStore()
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with torch.inference_mode():
                parallel = TensorParallel(Shard(rank, size))
                parallel.connect(store, "gloo", torch.device("cpu"))
                results[rank] = work(parallel)
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for error in errors.values():
        raise error
    return [results[rank] for rank in range(size)]
