"""Tokens per second of one rank and of two, in one run on one machine.

    python -m benchmarks.tensor_parallel [--rounds 3] [--output FILE]

Two models: the one that ships, whose forwards are so short that the ranks' exchanges dominate, and a random one of
180 million weights with the family's proportions, whose products are worth cutting. One torch thread per rank; one
rank with two threads beside it, because that is the other way to use a second core. Rounds take turns. Random weights
and forced lengths: this measures time only. On GPUs nothing of this was run.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.command import CHECKPOINT, command_parser, parsed, write_report
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.weights import expected_tensors
from engine.config import EngineConfig
from engine.engine import Engine
from engine.group.flat_batch import encode_segments
from engine.group.subprocesses import ROOT
from engine.plan import AR, Plan, diffusion
from engine.request import GenerationOptions

FAMILY = ROOT / "tests" / "data" / "checkpoints" / "3b-instruct" / "config.json"
SMALLER = {
    "hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 64, "num_hidden_layers": 8, "vocab_size": 32768, "torch_dtype": "float32",
}  # fmt: skip
RUNGS = {"ar": AR, "diffusion, 4 steps a block": diffusion(32, 4, threshold=None)}
LOADS = (1, 16)
PROMPT, TOKENS = 64, 64


@dataclass(frozen=True, slots=True)
class Way:
    """One way to use the cores."""

    tp: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.tp} rank{'s' * (self.tp > 1)}, {self.threads} thread{'s' * (self.threads > 1)} each"


WAYS = (Way(1, 1), Way(1, 2), Way(2, 1))


def write_model(path: Path) -> Path:
    """A random checkpoint of 180 million weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**json.loads(FAMILY.read_text()), **SMALLER}))
    generator = torch.Generator().manual_seed(0)
    shapes = expected_tensors(ModelConfig.from_dir(path)).items()
    save_file(
        {
            name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[1] ** 0.5
            for name, shape in shapes
        },
        path / "model.safetensors",
    )
    return path


def tokens_per_s(engine: Engine, rung: str, load: int, salt: int) -> float:
    """One batch of `load` requests, prompts included."""
    plan = Plan(ladder=(RUNGS[rung],), reason="benchmark")
    options = GenerationOptions(
        max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, temperature=0, seed=0, cache_salt=f"{salt}"
    )
    prompts = [[1, *range(200 + place, 200 + place + PROMPT - 1)] for place in range(load)]
    begun = time.perf_counter()
    for _ in engine.run_sync([(prompt, options, plan) for prompt in prompts]):
        pass
    return load * TOKENS / (time.perf_counter() - begun)


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds, a row for each way, rung and load."""
    speeds: dict[tuple[Way, str, int], list[float]] = {}
    for turn in range(rounds):
        for way in WAYS:
            config = {"tp": way.tp, "threads": way.threads, "dtype": "float32", "kv_tokens": 8192}
            engine = Engine.from_pretrained(path, EngineConfig.model_validate(config))
            try:
                tokens_per_s(engine, "ar", 1, -1)
                for rung in RUNGS:
                    for load in LOADS:
                        speeds.setdefault((way, rung, load), []).append(tokens_per_s(engine, rung, load, turn))
            finally:
                engine.close()
    return [
        {"way": way.name, "rung": rung, "requests": load, "tokens_per_s": round(statistics.median(seen), 1)}
        for (way, rung, load), seen in speeds.items()
    ]


def message_us() -> dict[str, float]:
    """What rank 0 pays to write the message of a large forward: 32 canvases with 16,384 tokens of context each."""
    from engine.batch import Segment

    canvas = [Segment([100] * 32, 16384, False, False, list(range(32)), list(range(513))) for _ in range(32)]
    begun = time.perf_counter()
    for _ in range(200):
        size = len(encode_segments(canvas))
    return {"bytes": size, "microseconds": round((time.perf_counter() - begun) / 200 * 1e6, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes and prints."""
    parser = command_parser("tensor_parallel", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parsed(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        models = {"stepdial-tiny": CHECKPOINT, "random, 180 million weights": write_model(Path(folder) / "model")}
        results = {name: measure(path, options.rounds) for name, path in models.items()}
    report = {"message_of_32_canvases_at_16k": message_us(), "results": results}
    write_report(options, report)
    for name, rows in results.items():
        print(name)
        for row in rows:
            print(
                f"  {row['way']:26} {row['rung']:28} {row['requests']:3} requests {row['tokens_per_s']:9.1f} tokens/s"
            )
    print(f"message: {report['message_of_32_canvases_at_16k']}")


if __name__ == "__main__":
    main()
