"""Asking an engine on the caller's thread, and the decoding fields that stand for every mode."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Delta, FinishReason, Report
from engine.plan import Plan
from engine.request import GenerationOptions
from tests.oracle.golden_cases import CASES, GOLDEN

PROMPTS: list[list[int]] = [list(prompt) for prompt in dict.fromkeys(tuple(case["prompt"]) for case in CASES)]
"""Of the golden cases, each once."""

MODES: dict[str, dict[str, Any]] = {
    "ar": {"decoding": "ar"},
    "self-speculation": {"decoding": "self_speculation", "block_length": 16},
    "self-speculation-iterative": {"decoding": "self_speculation", "block_length": 9, "threshold": 0.6},
    "diffusion-threshold": {"decoding": "diffusion", "block_length": 16, "threshold": 0.7},
    "diffusion-budget": {"decoding": "diffusion", "block_length": 12, "refinement_steps": 3},
    "diffusion-schedule": {"decoding": "diffusion", "block_length": 7, "threshold": None},
    "diffusion-block-1": {"decoding": "diffusion", "block_length": 1, "refinement_steps": 1},
    "diffusion-score": {"decoding": "diffusion", "block_length": 8, "refinement_steps": 2, "audit": "score"},
    "diffusion-tolerance": {"decoding": "diffusion", "block_length": 16, "refinement_steps": 2, "audit": 0.3},
    "diffusion-exact": {"decoding": "diffusion", "block_length": 11, "refinement_steps": 3, "audit": "exact"},
}
EXACT_MODES = ("self-speculation", "self-speculation-iterative", "diffusion-exact", "diffusion-block-1")
"""Modes whose every token is the one that AR would have chosen."""


@dataclass(slots=True)
class Answer:
    """One finished answer and the deltas that it came in."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    report: Report = field(default_factory=Report)


def last_layer_of_golden(directory: Path) -> Path:
    """The golden checkpoint without its layers but the last, in `directory`: for what is slow and needs no depth.

    By its last layer alone it speaks of many things; by its first, of one token.
    """
    raw = json.loads((GOLDEN / "config.json").read_text())
    last = f".layers.{raw['num_hidden_layers'] - 1}."
    for name in ("model.safetensors", "linear_spec_lora/adapter_model.safetensors"):
        kept = {
            key.replace(last, ".layers.0."): tensor
            for key, tensor in load_file(GOLDEN / name).items()
            if ".layers." not in key or last in key
        }
        (directory / name).parent.mkdir(exist_ok=True)
        save_file(kept, directory / name)
    shutil.copy(GOLDEN / "linear_spec_lora" / "adapter_config.json", directory / "linear_spec_lora")
    (directory / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 1}))
    return directory


def load(path: Path = GOLDEN, **settings: Any) -> Engine:
    """An engine in float32 on one thread whose loop is not started."""
    return Engine.from_pretrained(
        path, EngineConfig(**{"dtype": "float32", "threads": 1, "kv_tokens": 16_384, **settings})
    )


def answer(engine: Engine, requests: Seq[tuple[Seq[int], dict[str, Any]]], plan: Plan | None = None) -> list[Answer]:
    """Answers (prompt, request fields) pairs in one batch. Fails where an answer does not end or ends twice."""
    answers = [Answer() for _ in requests]
    for index, event in engine.run_sync([(prompt, GenerationOptions(**fields), plan) for prompt, fields in requests]):
        one = answers[index]
        assert one.finish_reason is None, "an event came after the last one"
        if isinstance(event, Delta):
            one.deltas.append(event)
            one.token_ids += event.token_ids
            one.text += event.text
        else:
            one.finish_reason, one.report = event.finish_reason, event.report
    for one in answers:
        assert one.finish_reason is not None
        assert one.report.completion_tokens == len(one.token_ids)
    assert engine.stats().pages_in_use == 0
    return answers


def ask(engine: Engine, prompt: Seq[int], **fields: Any) -> Answer:
    """One answer; temperature 0 unless said otherwise."""
    return answer(engine, [(prompt, {"temperature": 0, **fields})])[0]
