"""What FP8 weights cost in quality: the engine with `quantization: fp8` beside the same engine without.

    python -m benchmarks.fp8_error [--prompts 500] [--output FILE]

Three measures, on tasks of the test split, at temperature 0, in float32 apart from the quantised products:

- *choices*: along AR's own answers, how often the most likely token stays the same, the Kullback-Leibler divergence of
  the two distributions, and the largest top-2 gap of the logits that FP8 turned over;
- *answers*: exact match per mode with and without FP8, paired over prompts with a 95% bootstrap interval;
- *products*: relative error of every layer's products on the activations that really occur.

Quality does not depend on the machine; on a GPU the tensor cores multiply the same FP8 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from engine.tiny.tasks import generate
from kernels.quantize import quantize_rows_torch

RUNGS = {
    "AR": AR,
    "self-speculation 32": self_speculation(32),
    "diffusion 16, 8 steps, threshold 0.9": diffusion(16, 8, 0.9),
    "diffusion 32, 2 steps": diffusion(32, 2),
}
MAX_TOKENS = 288


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("fp8_error", __doc__, model=True)
    parser.add_argument("--prompts", type=int, default=500, help="tasks of the test split")
    options = parsed(parser, arguments)
    torch.set_num_threads(1)
    plain, fp8 = (LLM(options.model, config(kind)) for kind in ("none", "fp8"))
    tasks = list(generate("test", options.prompts, seed=3))
    prompts = [plain.encode([dict(message) for message in task.messages]) for task in tasks]
    right: dict[str, list[list[bool]]] = {}
    answers: list[list[int]] = []
    for name, rung in RUNGS.items():
        each = []
        for llm in (plain, fp8):
            outputs = llm.generate(
                prompts, GenerationOptions(max_tokens=MAX_TOKENS, temperature=0), plans(rung, prompts)
            )
            each.append(
                [output.text.strip() == task.answer.strip() for output, task in zip(outputs, tasks, strict=True)]
            )
            answers = answers or [output.token_ids for output in outputs]
        right[name] = each
    report = {
        "prompts": len(prompts),
        "answers": {name: compared(*each) for name, each in right.items()},
        "choices": choices(plain.engine, fp8.engine, prompts, answers),
        "products": product_errors(plain.engine, prompts[0] + answers[0]),
    }
    print_report(report)
    write_report(options, report)


def config(quantization: str) -> EngineConfig:
    return EngineConfig.model_validate(
        {"dtype": "float32", "quantization": quantization, "threads": 1, "kv_tokens": 32_768, "max_sequences": 64}
    )


def plans(rung: Rung, prompts: Sequence[object]) -> list[Plan]:
    return [Plan(ladder=(rung,)) for _ in prompts]


def compared(plain: Sequence[bool], fp8: Sequence[bool]) -> dict[str, Any]:
    """Exact match of both, and the paired difference."""
    before, after = np.asarray(plain, dtype=float), np.asarray(fp8, dtype=float)
    difference = mean_interval(after - before)
    return {
        "exact_match": round(before.mean(), 4),
        "exact_match_fp8": round(after.mean(), 4),
        "difference": [round(value, 4) for value in (difference.value, difference.low, difference.high)],
    }


def choices(
    plain: Engine, fp8: Engine, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> dict[str, float | int]:
    """The distributions at every position of AR's answers, as both engines see them."""
    same = total = 0
    divergence, widest = 0.0, 0.0
    for prompt, answer in track(list(zip(prompts, answers, strict=True)), description="choices", transient=True):
        one, other = (logits_of(engine, prompt, answer).double() for engine in (plain, fp8))
        chosen, turned = one.argmax(-1), other.argmax(-1)
        alike = chosen == turned
        same, total = same + int(alike.sum()), total + len(answer)
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        if not bool(alike.all()):
            top = one[~alike].topk(2).values
            widest = max(widest, float((top[:, 0] - top[:, 1]).max()))
    return {
        "positions": total,
        "same_token": round(same / total, 5),
        "mean_kl": round(divergence / total, 6),
        "widest_gap_turned_over": round(widest, 3),
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
    print(f"{'exact match':40}{'without':>9}{'fp8':>9}{'difference (95%)':>28}")
    for name, row in report["answers"].items():
        value, low, high = row["difference"]
        shown = f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"{name:40}{row['exact_match']:9.3f}{row['exact_match_fp8']:9.3f}{shown:>28}")
    said = report["choices"]
    print(
        f"along AR's answers: the same token at {said['same_token']:.2%} of {said['positions']} positions, mean KL "
        f"{said['mean_kl']:.6f}, widest top-2 gap turned over {said['widest_gap_turned_over']:.2f}"
    )
    print(
        "relative error of products: " + ", ".join(f"{name} {value:.3f}" for name, value in report["products"].items())
    )


if __name__ == "__main__":
    main()
