"""Names, shapes and types of the tensors in safetensors files, from their headers, against what a model needs."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Element types that are loaded. Quantised checkpoints are refused rather than misread."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Size of one element; 0 for an element type that is not loaded."""
        return ELEMENT_BYTES.get(self.dtype, 0)

    @property
    def bytes(self) -> int:
        """Size in the file; 0 for an element type that is not loaded."""
        size = self.element_bytes
        for length in self.shape:
            size *= length
        return size


@dataclass(slots=True)
class HeaderCheck:
    """What the headers of a set of files say, and every problem found on the way; no tensor is read."""

    tensors: dict[str, TensorHeader] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all tensors in the files."""
        return sum(header.bytes for header in self.tensors.values())


def check_model(directory: Path, expected: Shapes, optional: Set[str] = frozenset()) -> HeaderCheck:
    """Checks `model.safetensors`, or the files that the index names. No other file is looked at: a draft adapter in a
    folder below is never picked up.

    Args:
        expected: every tensor that the model can have, with its shape.
        optional: names of those that may be absent.
    """
    if (directory / SINGLE_FILE).is_file():
        return check_file(directory / SINGLE_FILE, expected, optional)
    check = HeaderCheck()
    if not (directory / INDEX_FILE).is_file():
        check.problems.append(f"there is neither {SINGLE_FILE} nor {INDEX_FILE}")
        return check
    placed = _weight_map(directory / INDEX_FILE, check)
    if check.problems:
        return check
    unread: set[str] = set()
    for name in sorted(set(placed.values())):
        if Path(name).name != name:
            check.problems.append(f"{INDEX_FILE} names the file {name!r}; allowed: a file in the same directory")
            unread.add(name)
        elif not _read(directory / name, check):
            unread.add(name)
    for tensor, file in placed.items():
        header = check.tensors.get(tensor)
        if header is None and file not in unread and tensor in expected:
            check.problems.append(f"{tensor} is not in {file}, where {INDEX_FILE} places it")
        elif header is not None and header.file.name != file:
            check.problems.append(f"{tensor} is in {header.file.name}, but {INDEX_FILE} places it in {file}")
    _compare(check, expected, optional | set(placed))
    return check


def check_file(file: Path, expected: Shapes, optional: Set[str] = frozenset()) -> HeaderCheck:
    """Checks one file that must hold exactly the `expected` tensors (the `optional` ones may be absent)."""
    check = HeaderCheck()
    if _read(file, check):
        _compare(check, expected, optional)
    return check


def _read(file: Path, check: HeaderCheck) -> bool:
    """Adds the file's tensors to the check; False (and a problem) where the file cannot be read."""
    if not file.is_file():
        check.problems.append(f"{file.name} is missing")
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                if name in check.tensors:
                    check.problems.append(f"{name} is in {check.tensors[name].file.name} and in {file.name}")
                entry = opened.get_slice(name)
                check.tensors[name] = TensorHeader(file, tuple(entry.get_shape()), entry.get_dtype())
    except (SafetensorError, OSError) as error:
        check.problems.append(f"{file.name} cannot be read: {error}")
        return False
    return True


def _compare(check: HeaderCheck, expected: Shapes, optional: Set[str]) -> None:
    for name, shape in expected.items():
        if name not in check.tensors and name not in optional:
            check.problems.append(f"{name} is missing; expected {list(shape)}")
    for name, header in check.tensors.items():
        if name not in expected:
            check.problems.append(f"{name} {list(header.shape)} is unexpected")
        elif header.shape != expected[name]:
            check.problems.append(f"{name} has shape {list(header.shape)}; expected {list(expected[name])}")
        if header.dtype not in ELEMENT_BYTES:
            check.problems.append(f"{name} has type {header.dtype}; allowed: {', '.join(ELEMENT_BYTES)}")


def _weight_map(index: Path, check: HeaderCheck) -> dict[str, str]:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        check.problems.append(f"{index.name} is not JSON: {error}")
        return {}
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        check.problems.append(f"{index.name} has no weight_map from tensor names to files")
        return {}
    return weight_map
