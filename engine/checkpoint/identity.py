"""Which checkpoint a measurement belongs to: a digest that is quick even for large weights.

A quality curve holds for the weights that it was measured on, so `ladder.json` and `quality.json` carry this digest and
are refused beside any other checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from engine.checkpoint.adapter_config import ADAPTER_CONFIG, ADAPTER_DIRECTORY, ADAPTER_FILE
from engine.checkpoint.headers import INDEX_FILE, SINGLE_FILE
from engine.checkpoint.json_file import read_json
from engine.errors import CheckpointError

IDENTITY_FIELD = "identity"
WHOLE_BELOW_BYTES = 64 << 20
PIECE_BYTES = 4096


def checkpoint_identity(path: str | Path) -> str:
    """A digest of what decides a model's answers, as `sha256:...`; milliseconds, and seconds at most for many shards.

    It covers `config.json` (its content, not its layout), `tokenizer.json`, and of every weights file, the draft
    adapter's too, the size and the header (names, shapes, types, offsets) and its tensors: whole files up to 64 MiB; of
    larger ones 4 KiB at the start, in the middle and at the end of every tensor. Training changes a tensor everywhere,
    so another training of the same shapes has another digest; a change of single numbers between those pieces, and a
    changed chat template, are not seen.

    Raises CheckpointError where the directory has no config or no weights, or a weights file is not safetensors.
    """
    directory = Path(path)
    digest = hashlib.sha256()
    _add_json(digest, directory, "config.json")
    if (directory / "tokenizer.json").is_file():
        _add(digest, "tokenizer.json", (directory / "tokenizer.json").read_bytes())
    for name in _weight_files(directory):
        _add_weights(digest, directory, name)
    if (directory / ADAPTER_DIRECTORY).is_dir():
        _add_json(digest, directory, f"{ADAPTER_DIRECTORY}/{ADAPTER_CONFIG}")
        _add_weights(digest, directory, f"{ADAPTER_DIRECTORY}/{ADAPTER_FILE}")
    return f"sha256:{digest.hexdigest()}"


def quantization_of(data: Mapping[str, Any]) -> str:
    """What a ladder or a curve says of the weights' quantization, as in `EngineConfig`."""
    return str(data.get("measured", {}).get("quantization", "none"))


def check_identity(path: str | Path, data: Mapping[str, Any], file: str | Path, identity: str | None = None) -> None:
    """Raises CheckpointError unless `data`, the content of `file`, was measured on the checkpoint in `path`.

    Args:
        file: its name, where it lies beside the checkpoint, or its path.
        identity: the checkpoint's digest where the caller has it already.
    """
    directory = Path(path)
    stored = data.get(IDENTITY_FIELD)
    again = f"run `stepdial calibrate --model {directory}`"
    if stored is None:
        raise CheckpointError(f"{directory / file} does not say which checkpoint it was measured on; {again}")
    own = identity or checkpoint_identity(directory)
    if stored != own:
        raise CheckpointError(
            f"{directory / file} was measured on another checkpoint ({IDENTITY_FIELD} {str(stored)[:23]}..., here "
            f"{own[:23]}...); {again}, or remove the file"
        )


def _weight_files(directory: Path) -> list[str]:
    """Names of the model's files: the single one, or those of the index."""
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    weight_map = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory} has neither {SINGLE_FILE} nor an {INDEX_FILE} that names files")
    return sorted({str(name) for name in weight_map.values()})


def _add(digest: Any, name: str, data: bytes) -> None:
    """Adds a named part; the length keeps two parts from reading as one."""
    digest.update(f"{name}\0{len(data)}\0".encode())
    digest.update(data)


def _add_json(digest: Any, directory: Path, name: str) -> None:
    data = read_json(directory / name)
    if not data:
        raise CheckpointError(f"{directory / name} is missing or empty")
    _add(digest, name, json.dumps(data, sort_keys=True).encode())


def _add_weights(digest: Any, directory: Path, name: str) -> None:
    try:
        with (directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{name}\0{size}\0".encode())
            if size <= WHOLE_BELOW_BYTES:
                digest.update(file.read())
            else:
                for piece in _pieces(file):
                    digest.update(piece)
    except OSError as error:
        raise CheckpointError(f"{directory / name} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / name} is not a safetensors file: {error}") from None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """A safetensors file's header (8 bytes of length, then JSON with `data_offsets`), then parts of each tensor."""
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length)
    yield header
    tensors = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"}
    for begin, end in sorted((int(begin), int(end)) for begin, end in tensors.values()):
        last = max(begin, end - PIECE_BYTES)
        for start in sorted({begin, (begin + last) // 2, last}):
            file.seek(8 + length + start)
            yield file.read(min(PIECE_BYTES, end - start))
