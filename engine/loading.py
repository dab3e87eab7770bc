"""From a checkpoint directory to an executor, on one rank or on a group of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import check_tensor_parallel
from engine.checkpoint.weights import checked_weights, load_draft_adapter, open_weights
from engine.errors import CheckpointError
from engine.executor import Executor, page_count
from engine.graphs import CudaRecorder
from engine.group.leader import Group
from engine.group.subprocesses import WorkerProcess
from engine.group.wire import Kind, RankSpec, number
from engine.model.fixed_linear import FixedLinear
from engine.model.fp8_linear import Fp8Linear
from engine.model.linear import Linear
from engine.model.narrow_linear import NarrowLinear
from engine.model.parallel import Shard, TensorParallel, default_backend, file_store
from engine.model.transformer import Product, Transformer
from kernels.narrow_product import SHARED_BYTES
from kernels.reach_work import FIXED
from kernels.switch import VARIABLE, use_triton

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.group.leader import Launcher


def load_executor(path: Path, model: ModelConfig, config: EngineConfig, launcher: Launcher | None = None) -> Executor:
    """Loads this process's part as rank 0, and with `tp` above 1 the other ranks' in processes of their own.

    Args:
        launcher: starts a worker; None = as a child process.

    Raises CheckpointError with every problem of the checkpoint, RankFailed when another rank cannot start.
    """
    check_tensor_parallel(model, config.tp)
    check_device(config.device, config.narrow_products)
    on_gpu = config.device == "cuda"
    for name in ("cuda_graphs", "narrow_products"):
        if on_gpu and getattr(config, name) and not use_triton(torch.empty(0, device=config.device)):
            raise CheckpointError(f"{name} is true, and {VARIABLE} keeps the kernels off; allowed: auto, triton")
    wide = config.dtype == "float32" or (config.dtype == "auto" and config.device == "cpu")
    dtype = torch.float32 if wide else torch.bfloat16
    spec = RankSpec(
        path=str(path.resolve()),
        size=config.tp,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        backend=default_backend(config.device) if config.tp_backend == "auto" else config.tp_backend,
        device=config.device,
        store="",
        quantization=config.quantization,
        batch_invariant=config.batch_invariant,
        narrow_products=config.narrow_products,
        cuda_graphs=config.cuda_graphs,
    )
    if config.tp == 1:
        part = load_part(spec, 0)
        splits = FIXED if config.batch_invariant else None
        executor = Executor(part, _pages(model, config, part), model.block_size, splits=splits)
        if config.cuda_graphs:
            executor.record_graphs(CudaRecorder())
        return executor
    return _load_group(spec, model, config, launcher or WorkerProcess)


def load_part(spec: RankSpec, rank: int) -> Transformer:
    """One rank's part of the model; its group is not connected yet."""
    path = Path(spec.path)
    model = ModelConfig.from_dir(path)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    shard, device = Shard(rank, spec.size), device_of(spec.device, rank)
    if device.type == "cuda":
        # Kernels are launched on the device that is current, wherever their tensors lie.
        torch.cuda.set_device(device)
    with open_weights(path, model, dtype, device, shard) as weights:
        adapter = load_draft_adapter(path, model, dtype, device, shard)
        return Transformer(model, weights, adapter, TensorParallel(shard), product_of(spec, device))


def product_of(spec: RankSpec, device: torch.device) -> type[Product]:
    """How the layers' products are made."""
    if spec.quantization == "fp8":
        return Fp8Linear
    # On a CPU rows have the same bits in any batch anyway, and few of them the library's speed.
    if not use_triton(torch.empty(0, device=device)):
        return Linear
    if spec.batch_invariant:
        return FixedLinear
    return NarrowLinear if spec.narrow_products else Linear


def check_device(device: str, narrow_products: bool) -> None:
    """Raises CheckpointError where there is no such device, or it cannot run what is asked."""
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise CheckpointError("device is 'cuda', and this process sees no GPU; allowed here: 'cpu'")
    if not narrow_products:
        return
    found = torch.cuda.get_device_properties()
    if found.major < 9 or found.shared_memory_per_multiprocessor < SHARED_BYTES:
        raise CheckpointError(
            f"narrow_products is true on a GPU of compute capability {found.major}.{found.minor} with "
            f"{found.shared_memory_per_multiprocessor >> 10} KiB of shared memory; allowed: 9.0 and "
            f"{SHARED_BYTES >> 10} KiB at least"
        )


def device_of(device: str, rank: int) -> torch.device:
    """The device of a rank: its own GPU, whether it sees that one alone, as under Ray, or all of the machine's."""
    if device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def _load_group(spec: RankSpec, model: ModelConfig, config: EngineConfig, launcher: Launcher) -> Executor:
    """Starts the workers, loads all parts at the same time, and lets the ranks meet."""
    # What is wrong with the files is said here, by one rank and before any other starts.
    checked_weights(spec.path, model)
    group = Group(spec.size, launcher)
    try:
        spec = replace(spec, store=str(group.store))
        group.start(spec)
        part = load_part(spec, 0)
        group.await_all(Kind.LOADED)
        pages = _pages(model, config, part)
        group.tell(Kind.MEMORY, number(pages))
        executor = Executor(part, pages, model.block_size, group=group)
        # Only now, when all have what they need: who meets waits for the others.
        group.await_all(Kind.READY)
        # From here on the ranks wait for each other on the device, where they hear of nothing else.
        group.watch(lambda _: part.parallel.abort())
        group.tell(Kind.MEET)
        with executor.naming_failed_ranks():
            part.parallel.connect(file_store(group.store, spec.size), spec.backend, part.device)
        if spec.backend == "gloo":
            # All have met, and gloo asks the store for nothing more; NCCL may.
            group.remove_directory()
        if spec.cuda_graphs:
            executor.record_graphs(CudaRecorder())
    except BaseException:
        group.close()
        raise
    return executor


def _pages(model: ModelConfig, config: EngineConfig, part: Transformer) -> int:
    """Pages of K/V, the same number on every rank: they share the memory of a machine, or have a GPU each."""
    per_token = model.kv_bytes_per_token(part.dtype)
    if part.device.type == "cuda":
        per_token //= config.tp
    return page_count(
        config.kv_tokens,
        model.block_size,
        per_token,
        _free_memory_bytes(part.device),
        config.kv_memory_fraction,
        config.max_kv_tokens,
    )


def _free_memory_bytes(device: torch.device) -> int:
    """Memory that the device can still give, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable line; set kv_tokens")
