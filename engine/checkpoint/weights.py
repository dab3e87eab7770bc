"""Loads a checkpoint's tensors, after every name and shape was compared with the config (contract section 2)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from engine.checkpoint.adapter_config import ADAPTER_DIRECTORY, ADAPTER_FILE, read_adapter_config
from engine.checkpoint.config import problem_list
from engine.checkpoint.headers import HeaderCheck, Shapes, TensorHeader, check_file, check_model
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.checkpoint.config import ModelConfig

EMBEDDING = "encoder.embed_tokens.weight"
HEAD = "diffusion_head.weight"
PROGRESS_FROM_BYTES = 1 << 30


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
) -> dict[str, Tensor]:
    """All tensors of `expected_tensors`, in `dtype` on `device`; a bar on the terminal shows the progress of big ones.

    A tied checkpoint's head is its embedding, the same tensor; where the files hold a head of their own, that one
    is used whatever the config says of tying, as transformers does.

    Raises CheckpointError with every problem of names, shapes and files, before any tensor is read.
    """
    check = check_weights(path, config)
    if check.problems:
        raise CheckpointError(problem_list(f"{path} cannot be loaded", check.problems))
    weights = _read_tensors(check, dtype, torch.device(device), "Loading weights")
    if HEAD not in weights:
        weights[HEAD] = weights[EMBEDDING]
    return weights


def load_draft_adapter(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DraftAdapter | None:
    """The adapter in `linear_spec_lora/`, or None where that folder is absent (base models, Megatron-Bridge exports).

    Raises CheckpointError with every problem of its config, names and shapes.
    """
    found = check_adapter(path, config)
    if found is None:
        return None
    check, scale = found
    if check.problems:
        raise CheckpointError(problem_list(f"{Path(path) / ADAPTER_DIRECTORY} cannot be loaded", check.problems))
    tensors = _read_tensors(check, dtype, torch.device(device), "Loading draft adapter")
    names = [f"base_model.model.encoder.layers.{index}.self_attn.o_proj" for index in range(config.num_layers)]
    pairs = [(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names]
    return DraftAdapter(tuple(pairs), scale)


def _read_tensors(check: HeaderCheck, dtype: torch.dtype, device: torch.device, title: str) -> dict[str, Tensor]:
    """Reads file by file. Tensors are copied out of the mapped file: their memory is aligned, which the bits of a CPU
    product may depend on, and a checkpoint may be replaced while it is served."""

    def file_of(item: tuple[str, TensorHeader]) -> Path:
        return item[1].file

    tensors: dict[str, Tensor] = {}
    with _progress(title, check.bytes) as advance:
        for file, items in groupby(sorted(check.tensors.items(), key=file_of), key=file_of):
            with safe_open(file, framework="pt") as opened:
                for name, header in items:
                    tensors[name] = opened.get_tensor(name).to(device, dtype, copy=True)
                    advance(header.bytes)
    return tensors


@contextmanager
def _progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; silent for small models and where stderr is no terminal."""
    if total_bytes < PROGRESS_FROM_BYTES or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda size: bar.advance(task, size)
