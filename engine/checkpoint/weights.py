"""Loads a checkpoint's tensors, after every name and shape was compared with the config (contract section 2).

A rank reads only its part of each tensor, in pieces, when the model asks for it: beside what the model keeps there is
never more than one tensor in memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from engine.checkpoint.adapter_config import ADAPTER_DIRECTORY, ADAPTER_FILE, read_adapter_config
from engine.checkpoint.config import problem_list
from engine.checkpoint.headers import HeaderCheck, Shapes, check_file, check_model
from engine.errors import CheckpointError
from engine.model.parallel import WHOLE, Shard

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.checkpoint.config import ModelConfig

EMBEDDING = "encoder.embed_tokens.weight"
HEAD = "diffusion_head.weight"
PROGRESS_FROM_BYTES = 1 << 30
PIECE_BYTES = 64 << 20
"""A tensor is copied in pieces of so many bytes of its file, whose mapping ends with each piece: mapped pages count as
memory of the process as long as they are mapped."""


class Weights(Protocol):
    """Where a model takes its tensors from: a dict of them, or a `TensorReader`."""

    def pop(self, name: str, /) -> Tensor: ...


class TensorReader:
    """Reads a rank's part of a tensor from its file when it is asked for it.

    Attributes:
        shard: the part to read.
    """

    def __init__(
        self,
        check: HeaderCheck,
        shard: Shard,
        dtype: torch.dtype,
        device: torch.device,
        advance: Callable[[int], None],
    ) -> None:
        """Takes a `check` without problems; `advance` is told the bytes as they are read."""
        self.shard = shard
        self._check = check
        self._dtype = dtype
        self._device = device
        self._advance = advance

    @property
    def names(self) -> list[str]:
        """Names of the tensors in the files."""
        return list(self._check.tensors)

    def pop(self, name: str, /) -> Tensor:
        """This rank's part of tensor `name`, in the reader's dtype on its device; a tied head is the embedding.

        It is copied out of the mapped file: its memory is aligned, which the bits of a CPU product may depend on, and
        a checkpoint may be replaced while it is served.
        """
        if name == HEAD and name not in self._check.tensors:
            name = EMBEDDING
        header = self._check.tensors[name]
        first, *others = self.shard.slices(name, header.shape)
        shape = [axis.stop - axis.start for axis in (first, *others)]
        target = torch.empty(shape, dtype=self._dtype, device=self._device)
        step = max(1, PIECE_BYTES * header.shape[0] // max(1, header.bytes))
        for begin in range(first.start, first.stop, step):
            rows = slice(begin, min(begin + step, first.stop))
            with safe_open(header.file, framework="pt") as opened:
                piece = opened.get_slice(name)[(rows, *others)]
                target[rows.start - first.start : rows.stop - first.start].copy_(piece)
            self._advance(piece.numel() * header.element_bytes)
            del piece
        return target


@dataclass(frozen=True, slots=True)
class DraftAdapter:
    """The low-rank update of every o_proj that drafts run with (contract 2.2): W_o + scale * (B @ A).

    Attributes:
        layers: per layer A `[rank, q_size]` and B `[hidden, rank]`.
        scale: alpha / rank, or alpha / sqrt(rank) for a rank-stabilised adapter.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    scale: float

    @property
    def rank(self) -> int:
        return self.layers[0][0].shape[0]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor of a checkpoint, head included (contract 2.1): 9 per layer and 3."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (config.q_size, hidden),
        "self_attn.k_proj": (config.kv_size, hidden),
        "self_attn.v_proj": (config.kv_size, hidden),
        "self_attn.o_proj": (hidden, config.q_size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors: Shapes = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        tensors.update({f"encoder.layers.{index}.{name}.weight": shape for name, shape in layer.items()})
    tensors["encoder.norm.weight"] = (hidden,)
    tensors[HEAD] = (config.vocab_size, hidden)
    return tensors


def expected_adapter_tensors(config: ModelConfig, rank: int) -> Shapes:
    """Name and shape of every tensor of the draft adapter (contract 2.2): two per layer."""
    tensors: Shapes = {}
    for index in range(config.num_layers):
        prefix = f"base_model.model.encoder.layers.{index}.self_attn.o_proj"
        tensors[f"{prefix}.lora_A.weight"] = (rank, config.q_size)
        tensors[f"{prefix}.lora_B.weight"] = (config.hidden_size, rank)
    return tensors


def check_weights(path: str | Path, config: ModelConfig) -> HeaderCheck:
    """Compares the headers of a checkpoint's model files with the config; reads no tensor."""
    optional = frozenset({HEAD} if config.tie_word_embeddings else ())
    return check_model(Path(path), expected_tensors(config), optional)


def checked_weights(path: str | Path, config: ModelConfig) -> HeaderCheck:
    """`check_weights`, raising one CheckpointError with every problem."""
    check = check_weights(path, config)
    if check.problems:
        raise CheckpointError(problem_list(f"{path} cannot be loaded", check.problems))
    return check


def check_adapter(path: str | Path, config: ModelConfig) -> tuple[HeaderCheck, float] | None:
    """Compares the draft adapter's headers with the config, and its scale; None where there is no adapter."""
    folder = Path(path) / ADAPTER_DIRECTORY
    if not folder.is_dir():
        return None
    problems: list[str] = []
    rank, scale = read_adapter_config(folder, problems)
    check = HeaderCheck()
    if rank is not None:
        check = check_file(folder / ADAPTER_FILE, expected_adapter_tensors(config, rank))
    elif not (folder / ADAPTER_FILE).is_file():
        problems.append(f"{ADAPTER_FILE} is missing")
    check.problems[:0] = problems
    return check, scale


def load_weights(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shard: Shard = WHOLE,
) -> dict[str, Tensor]:
    """All tensors of `expected_tensors` at once, of each the part of `shard`, in `dtype` on `device`.

    A tied checkpoint's head is its embedding, the same tensor; where the files hold a head of their own, that one
    is used whatever the config says of tying, as transformers does.

    Raises CheckpointError with every problem of names, shapes and files, before any tensor is read.
    """
    with open_weights(path, config, dtype, device, shard) as reader:
        weights = {name: reader.pop(name) for name in reader.names}
    if HEAD not in weights:
        weights[HEAD] = weights[EMBEDDING]
    return weights


@contextmanager
def open_weights(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shard: Shard = WHOLE,
) -> Iterator[TensorReader]:
    """A reader of `shard`'s part of the model's tensors; on rank 0's terminal a bar shows the progress of big ones.

    Raises CheckpointError with every problem of names, shapes and files, before any tensor is read.
    """
    check = checked_weights(path, config)
    with _progress("Loading weights", check, shard) as advance:
        yield TensorReader(check, shard, dtype, torch.device(device), advance)


def load_draft_adapter(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shard: Shard = WHOLE,
) -> DraftAdapter | None:
    """The adapter in `linear_spec_lora/`, or None where that folder is absent (base models, Megatron-Bridge exports).

    Of A the columns of `shard`, of B everything.

    Raises CheckpointError with every problem of its config, names and shapes.
    """
    found = check_adapter(path, config)
    if found is None:
        return None
    check, scale = found
    if check.problems:
        raise CheckpointError(problem_list(f"{Path(path) / ADAPTER_DIRECTORY} cannot be loaded", check.problems))
    names = [f"base_model.model.encoder.layers.{index}.self_attn.o_proj" for index in range(config.num_layers)]
    with _progress("Loading draft adapter", check, shard) as advance:
        reader = TensorReader(check, shard, dtype, torch.device(device), advance)
        pairs = [(reader.pop(f"{name}.lora_A.weight"), reader.pop(f"{name}.lora_B.weight")) for name in names]
    return DraftAdapter(tuple(pairs), scale)


def shard_bytes(check: HeaderCheck, shard: Shard) -> int:
    """Bytes of `shard`'s part of the tensors in their files."""
    total = 0
    for name, header in check.tensors.items():
        parts = shard.slices(name, header.shape)
        total += math.prod(part.stop - part.start for part in parts) * header.element_bytes
    return total


@contextmanager
def _progress(title: str, check: HeaderCheck, shard: Shard) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; silent for small models, on ranks other than 0, and where stderr is no terminal."""
    total_bytes = shard_bytes(check, shard)
    if total_bytes < PROGRESS_FROM_BYTES or shard.rank or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    title = title if shard.size == 1 else f"{title} (rank 0 of {shard.size})"
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda size: bar.advance(task, size)
