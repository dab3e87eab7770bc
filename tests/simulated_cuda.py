"""A GPU that is not there: tensors of its own on device `cuda:0`, whose numbers are computed on the CPU.

What only a GPU does, the CPU's tests do not see: a tensor on the wrong device, a host that waits while a graph is
recorded, a number that a graph has kept from the day it was recorded, code behind `is_cuda`. Here all of that runs.
Kernels run in Triton's interpreter (so the process needs TRITON_INTERPRET=1), of bf16 in float32, which it gets right.
Nothing is asynchronous, and no time means anything.

    with simulated() as gpu:
        torch.ones(3, device="cuda") + torch.ones(3)  # raises, as on a GPU
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # which is needed by tensors of a class of their own, and not to be imported in the simulation
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from triton.runtime import interpreter

DEVICE = torch.device("cuda", 0)
MEMORY_BYTES = 141 * 10**9
aten = torch.ops.aten
BETWEEN_DEVICES = {aten.copy_.default, aten._to_copy.default}
"""Operations that take tensors of two devices; a GPU takes some index tensors of the CPU too, for which it waits."""
SCALED = {torch.ops.aten._scaled_mm.default}


@dataclass(slots=True)
class Simulated:
    """What the GPU has seen.

    Attributes:
        waits: how often the host waited for it. launches: kernels. replays: of graphs.
        recording: the calls of the graph that is being recorded.
    """

    waits: int = 0
    launches: int = 0
    replays: int = 0
    recording: list[Callable[[], None]] | None = None

    def wait(self) -> None:
        """The host waits. Raises RuntimeError while a graph is recorded, as CUDA does."""
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.waits += 1


class CudaTensor(Tensor):
    """A tensor of the GPU; `inner` has its numbers."""

    inner: Tensor
    gpu: Simulated

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: Simulated) -> CudaTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            # To a build for CPUs a tensor of CUDA is a stranger that it does not index.
            device=torch.device("meta"),
        )
        made.inner, made.gpu = inner, gpu
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"cuda {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(arg.gpu for arg in _tensors((args, kwargs)) if isinstance(arg, CudaTensor))
        return _run(gpu, func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors that are asked for on the GPU."""

    def __init__(self, gpu: Simulated) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self.gpu, func, args, kwargs or {})


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, tree)
    return found


@torch.inference_mode(False)
@torch.no_grad()
def _run(gpu: Simulated, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the inner tensors; its results are where a GPU would have them."""
    given = _tensors((args, kwargs))
    there = [tensor for tensor in given if isinstance(tensor, CudaTensor)]
    asked = kwargs.get("device")
    on_gpu = bool(there) if asked is None else torch.device(asked).type != "cpu"
    if there and func not in BETWEEN_DEVICES:
        strangers = [tensor for tensor in given if not isinstance(tensor, CudaTensor) and tensor.dim()]
        if strangers:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {strangers[0].shape} on cpu")
    waits = not kwargs.get("non_blocking")
    if func is aten.copy_.default:
        on_gpu = isinstance(args[0], CudaTensor)
        crosses = len(there) == 1 and args[1].dim() > 0
        if crosses and waits and not (len(args) > 2 and args[2]):
            gpu.wait()
    elif there:
        if func in (aten._local_scalar_dense.default, aten.nonzero.default) or not on_gpu:
            gpu.wait()
    elif func is aten._to_copy.default and on_gpu and waits:
        gpu.wait()
    wrapped = {id(tensor.inner): tensor for tensor in there}

    def inside(leaf: Any) -> Any:
        return leaf.inner if isinstance(leaf, CudaTensor) else leaf

    inner_args = tree_map(inside, args)
    inner_kwargs = {name: tree_map(inside, value) for name, value in kwargs.items() if name != "pin_memory"}
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    call = _scaled_mm if func in SCALED else func
    result = call(*inner_args, **inner_kwargs)
    if on_gpu and gpu.recording is not None:
        gpu.recording.append(lambda: _again(call, inner_args, inner_kwargs, result))

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, CudaTensor) or not on_gpu:
            return leaf
        return wrapped[id(leaf)] if id(leaf) in wrapped else CudaTensor(leaf, gpu)

    return tree_map(outside, result)


def _again(call: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
    """The operation once more, with its result where it was."""
    for new, old in zip(_tensors(call(*args, **kwargs)), _tensors(result), strict=True):
        if new.data_ptr() != old.data_ptr():
            old.copy_(new)


def _scaled_mm(
    x: Tensor,
    weight: Tensor,
    scale_x: Tensor,
    scale_weight: Tensor,
    bias: None = None,
    scale_result: None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    use_fast_accum: bool = False,
) -> Tensor:
    """What the GPU's product of FP8 rows wants of its inputs, and gives (one scale for each row and each output)."""
    if not (x.is_contiguous() and weight.t().is_contiguous()):
        raise RuntimeError("mat_a must be row-major, mat_b column-major")
    if x.shape[1] % 16 or weight.shape[1] % 16:
        raise RuntimeError("both sizes must be divisible by 16")
    if scale_x.shape != (len(x), 1) or scale_weight.shape != (1, weight.shape[1]):
        raise RuntimeError(f"scales {scale_x.shape} and {scale_weight.shape}")
    return ((x.float() * scale_x) @ (weight.float() * scale_weight)).to(out_dtype)


class _Generator(torch.Generator):
    """Of any device."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` by way of the CPU."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _moved(move: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to`, which a build for CPUs refuses for other devices."""

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        there = torch.device(args[0]) if args and isinstance(args[0], str) else args[0] if args else None
        if isinstance(there, Tensor):
            there = there.device
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else there
        if not isinstance(device, torch.device) or device.type != "cuda":
            return move(self, *args, **kwargs)
        dtype = kwargs.get("dtype") or next((arg for arg in args if isinstance(arg, torch.dtype)), self.dtype)
        if isinstance(self, CudaTensor) and dtype is self.dtype and not kwargs.get("copy"):
            return self
        return aten._to_copy(self, device=DEVICE, dtype=dtype, non_blocking=bool(kwargs.get("non_blocking")))

    return moved


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        if not (self.recorded and other.recorded):
            raise RuntimeError("both events must be recorded")
        return 1.0


@dataclass(slots=True)
class _Graph:
    gpu: Simulated
    calls: list[Callable[[], None]] = field(default_factory=list)

    def replay(self) -> None:
        self.gpu.replays += 1
        for call in self.calls:
            call()

    def reset(self) -> None:
        self.calls = []


@contextlib.contextmanager
def _recorded(gpu: Simulated, graph: _Graph, pool: Any = None) -> Iterator[None]:
    gpu.wait()
    gpu.recording = graph.calls
    try:
        yield
    finally:
        gpu.recording = None


def _launch(gpu: Simulated, launch: Callable[..., None]) -> Callable[..., None]:
    """A kernel's launch, of tensors of the GPU alone."""

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        wide: list[tuple[Tensor, Tensor]] = []

        def inside(leaf: Any) -> Any:
            if isinstance(leaf, triton.tools.tensor_descriptor.TensorDescriptor):
                rest = (leaf.shape, leaf.strides, leaf.block_shape, leaf.padding)
                return triton.tools.tensor_descriptor.TensorDescriptor(inside(leaf.base), *rest)
            if not isinstance(leaf, Tensor):
                return leaf
            if not isinstance(leaf, CudaTensor):
                raise ValueError(f"Pointer argument cannot be accessed from Triton: {leaf.shape} on cpu")
            if leaf.dtype is not torch.bfloat16:
                return leaf.inner
            wide.append((leaf.inner, leaf.inner.float()))
            return wide[-1][1]

        def run() -> None:
            wide.clear()
            inner = [inside(arg) for arg in args]
            launch(self, *inner, **{name: inside(value) for name, value in kwargs.items()})
            for narrow, result in wide:
                narrow.copy_(result)

        gpu.launches += 1
        run()
        if gpu.recording is not None:
            gpu.recording.append(run)

    return launched


@contextlib.contextmanager
def simulated() -> Iterator[Simulated]:
    """A process that sees one GPU."""
    gpu = Simulated()
    stream = SimpleNamespace(synchronize=gpu.wait)
    properties = SimpleNamespace(
        name="simulated",
        total_memory=MEMORY_BYTES,
        multi_processor_count=132,
        L2_cache_size=1 << 20,
        major=9,
        minor=0,
        shared_memory_per_multiprocessor=228 << 10,
    )
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "synchronize": lambda _=None: gpu.wait(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda _=None: (MEMORY_BYTES, MEMORY_BYTES),
        "get_device_properties": lambda _=None: properties,
        "get_device_capability": lambda _=None: (9, 0),
        "current_stream": lambda _=None: stream,
        "default_stream": lambda _=None: stream,
        "Event": _Event,
        "CUDAGraph": lambda: _Graph(gpu),
        "graph": lambda graph, pool=None: _recorded(gpu, graph, pool),
        "graph_pool_handle": lambda: None,
        "reset_peak_memory_stats": lambda _=None: None,
        "memory_allocated": lambda _=None: 0,
        "max_memory_allocated": lambda _=None: 0,
        "_sleep": lambda _: None,
    }
    executor = interpreter.GridExecutor
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(executor, "__call__", _launch(gpu, executor.__call__)))
        stack.enter_context(patch.object(torch, "compile", lambda call, **_: call))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch, "tensor", _made(torch.tensor)))
        stack.enter_context(patch.object(Tensor, "to", _moved(Tensor.to)))
        stack.enter_context(_Mode(gpu))
        yield gpu
