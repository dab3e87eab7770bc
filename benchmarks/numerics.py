"""What narrower numbers cost in quality: bfloat16 and FP8 weights beside the same engine in float32.

    python -m benchmarks.numerics [--prompts 500] [--output FILE]

Three measures, on tasks of the test split, at temperature 0:

- *choices*: along AR's own answers, how often the most likely token is another one, the widest gap between the two best
  float32 logits (the *top-2 gap*) where that happened, and the Kullback-Leibler divergence of the two distributions;
- *answers*: exact match per mode, paired with float32 over prompts, with a 95% bootstrap interval;
- *products*: relative error of every layer's products in FP8 on the activations that really occur.

The bars are on the gap: a token may differ only where the two best logits are nearly equal. Quality does not depend on
the machine; on a GPU the tensor cores multiply the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.command import command_parser, parsed, write_report
from engine.batch import Segment
from engine.calibration.bootstrap import mean_interval
from engine.config import EngineConfig
from engine.engine import Engine
from engine.llm import LLM
from engine.plan import AR, Plan, Rung, diffusion, self_speculation
from engine.request import GenerationOptions
from engine.tiny.tasks import Task, generate
from kernels.quantize import quantize_rows_torch

RUNGS = {
    "AR": AR,
    "self-speculation 32": self_speculation(32),
    "diffusion 16, 8 steps, threshold 0.9": diffusion(16, 8, 0.9),
    "diffusion 32, 2 steps": diffusion(32, 2),
}
VARIANTS: dict[str, dict[str, str]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "fp8": {"dtype": "float32", "quantization": "fp8"},
    "bfloat16 and fp8": {"dtype": "bfloat16", "quantization": "fp8"},
}
GAP_BARS = {"bfloat16": 0.25, "fp8": 0.5, "bfloat16 and fp8": 0.5}
"""The widest top-2 gap at which a token may differ, in logits of float32."""
MAX_TOKENS = 288


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("numerics", __doc__, model=True)
    parser.add_argument("--prompts", type=int, default=500, help="tasks of the test split")
    options = parsed(parser, arguments)
    torch.set_num_threads(1)
    tasks = list(generate("test", options.prompts, seed=3))
    plain = loaded(options.model, {"dtype": "float32"})
    prompts = [plain.encode([dict(message) for message in task.messages]) for task in tasks]
    truth, answers = answered(plain, prompts, tasks)
    variants: dict[str, dict[str, Any]] = {}
    for name, fields in VARIANTS.items():
        llm = loaded(options.model, fields)
        right, _ = answered(llm, prompts, tasks)
        variants[name] = {
            "answers": {mode: compared(truth[mode], right[mode]) for mode in RUNGS},
            "choices": choices(plain.engine, llm.engine, prompts, answers),
            "gap_bar": GAP_BARS[name],
        }
        llm.close()
    report = {
        "prompts": len(prompts),
        "variants": variants,
        "fp8_product_errors": product_errors(plain.engine, prompts[0] + answers[0]),
    }
    print_report(report)
    write_report(options, report)


def loaded(model: Path, fields: Mapping[str, str]) -> LLM:
    config = {"threads": 1, "kv_tokens": 32_768, "max_sequences": 64, **fields}
    return LLM(model, EngineConfig.model_validate(config))


def answered(
    llm: LLM, prompts: Sequence[list[int]], tasks: Sequence[Task]
) -> tuple[dict[str, list[bool]], list[list[int]]]:
    """Per mode which answers are right, and AR's tokens."""
    options = GenerationOptions(max_tokens=MAX_TOKENS, temperature=0)
    right: dict[str, list[bool]] = {}
    tokens: list[list[int]] = []
    for name, rung in RUNGS.items():
        outputs = llm.generate(prompts, options, plans(rung, prompts))
        right[name] = [output.text.strip() == task.answer.strip() for output, task in zip(outputs, tasks, strict=True)]
        tokens = tokens or [output.token_ids for output in outputs]
    return right, tokens


def plans(rung: Rung, prompts: Sequence[object]) -> list[Plan]:
    return [Plan(ladder=(rung,)) for _ in prompts]


def compared(plain: Sequence[bool], other: Sequence[bool]) -> dict[str, Any]:
    """Exact match of both, and the paired difference."""
    before, after = np.asarray(plain, dtype=float), np.asarray(other, dtype=float)
    difference = mean_interval(after - before)
    return {
        "float32": round(before.mean(), 4),
        "exact_match": round(after.mean(), 4),
        "difference": [round(value, 4) for value in (difference.value, difference.low, difference.high)],
    }


def choices(
    plain: Engine, narrow: Engine, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> dict[str, float | int]:
    """The distributions at every position of AR's answers, as both engines see them."""
    turned = total = 0
    divergence, widest = 0.0, 0.0
    for prompt, answer in track(list(zip(prompts, answers, strict=True)), description="choices", transient=True):
        one, other = (logits_of(engine, prompt, answer).double() for engine in (plain, narrow))
        differs = one.argmax(-1) != other.argmax(-1)
        turned, total = turned + int(differs.sum()), total + len(answer)
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        if bool(differs.any()):
            top = one[differs].topk(2).values
            widest = max(widest, float((top[:, 0] - top[:, 1]).max()))
    return {
        "positions": total,
        "other_token": turned,
        "mean_kl": round(divergence / total, 8),
        "widest_gap": round(widest, 3),
    }


def logits_of(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """`[len(answer), vocab]`: what the model says before each token of the answer, in one causal forward."""
    tokens = [*prompt, *answer[:-1]]
    executor = engine.core.executor
    pages = list(range(1, 2 + len(tokens) // executor.page_size))
    wanted = list(range(len(prompt) - 1, len(tokens)))
    return executor.run(executor.batch([Segment(tokens, 0, True, False, wanted, pages)]))


def product_errors(engine: Engine, tokens: Sequence[int]) -> dict[str, float]:
    """Relative error (Frobenius) of the four products, the mean over layers, on one chat's activations."""
    found: dict[str, list[float]] = {}
    model = engine.core.executor.model
    for layer in model.layers:
        for name in ("qkv", "output", "gate_up", "down"):
            product = getattr(layer, name)

            def watched(x: Tensor, product: Any = product, name: str = name) -> Tensor:
                exact: Tensor = product(x)
                inputs = torch.eye(x.shape[1], dtype=x.dtype)
                weight = product(inputs).t().contiguous()
                restored = (quantize_rows_torch(side).restored(torch.float64) for side in (x, weight))
                left, right = restored
                error = (left @ right.t() - exact.double()).norm() / exact.double().norm()
                found.setdefault(name, []).append(float(error))
                return exact

            setattr(layer, name, watched)
    logits_of(engine, tokens[:1], tokens[1:])
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def print_report(report: dict[str, Any]) -> None:
    for name, variant in report["variants"].items():
        print(f"{name:40}{'float32':>9}{'here':>9}{'difference (95%)':>28}")
        for mode, row in variant["answers"].items():
            value, low, high = row["difference"]
            shown = f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"  {mode:38}{row['float32']:9.3f}{row['exact_match']:9.3f}{shown:>28}")
        said, bar = variant["choices"], variant["gap_bar"]
        passed = "pass" if said["widest_gap"] <= bar else "FAIL"
        print(
            f"  {passed}  another token at {said['other_token']} of {said['positions']} positions, where the top-2 gap "
            f"is at most {said['widest_gap']:.3f} (bar {bar}); mean KL {said['mean_kl']:.1e}"
        )
    errors = ", ".join(f"{name} {value:.3f}" for name, value in report["fp8_product_errors"].items())
    print(f"relative error of products in FP8: {errors}")


if __name__ == "__main__":
    main()
