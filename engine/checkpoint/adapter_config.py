"""The `adapter_config.json` of the draft adapter: PEFT's format, of which one form is served (contract 2.2)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ADAPTER_DIRECTORY = "linear_spec_lora"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Options of PEFT that would change the product; each must be absent, null, false or empty."""


def read_adapter_config(folder: Path, problems: list[str]) -> tuple[int | None, float]:
    """Rank and scale of the adapter in `folder`; what is wrong is added to `problems` (the rank is then None)."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        problems.append(f"{ADAPTER_CONFIG} is missing")
        return None, 0.0
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        problems.append(f"{ADAPTER_CONFIG} is not JSON: {error}")
        return None, 0.0
    if not isinstance(data, dict):
        problems.append(f"{ADAPTER_CONFIG} must hold a JSON object, not {type(data).__name__}")
        return None, 0.0
    return _rank_and_scale(data, problems)


def _rank_and_scale(data: dict[str, Any], problems: list[str]) -> tuple[int | None, float]:
    def note(key: str, allowed: str) -> None:
        problems.append(f"{ADAPTER_CONFIG}: {key} is {data.get(key)!r}; allowed: {allowed}")

    if str(data.get("peft_type")).upper() != "LORA":
        note("peft_type", '"LORA"')
    if data.get("target_modules") not in ("o_proj", ["o_proj"]):
        note("target_modules", '["o_proj"]')
    if data.get("bias", "none") != "none":
        note("bias", '"none"')
    for key in UNSUPPORTED:
        if data.get(key):
            note(key, "absent or false")
    rank, alpha = data.get("r"), data.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        note("r", "an integer of at least 1")
        rank = None
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        note("lora_alpha", "a number")
        alpha = 0
    if rank is None:
        return None, 0.0
    return rank, alpha / (math.sqrt(rank) if data.get("use_rslora") else rank)
