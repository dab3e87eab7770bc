"""The small trained checkpoint of the tests, and copies of it with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "golden"
PUBLISHED = DATA / "checkpoints"


def golden_config() -> dict[str, Any]:
    """A fresh copy of the small checkpoint's config.json."""
    content: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
    return content


def write_copy(
    target: Path,
    config: dict[str, Any] | None = None,
    change: Callable[[dict[str, Tensor]], None] | None = None,
    adapter: bool = True,
) -> Path:
    """Writes the small checkpoint to `target`, with some config keys replaced and its tensors changed in place."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps({**golden_config(), **(config or {})}))
    tensors = load_file(GOLDEN / "model.safetensors")
    if change is not None:
        change(tensors)
    save_file(tensors, target / "model.safetensors")
    if adapter:
        shutil.copytree(GOLDEN / "linear_spec_lora", target / "linear_spec_lora", copy_function=shutil.copyfile)
    return target
