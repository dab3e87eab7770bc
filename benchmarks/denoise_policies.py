"""What an entropy bound and remask are worth: `python -m benchmarks.denoise_policies`

Right answers and tokens per forward of the shipped model on held-out tasks, greedily and with blocks of 32, beside
thresholds, which are another form of the same dial. 300 tasks take a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.command import CHECKPOINT, command_parser, parsed, write_report
from engine.calibration.bootstrap import mean_interval
from engine.llm import LLM
from engine.request import GenerationOptions
from engine.tiny.tasks import generate

SETTINGS: tuple[dict[str, float], ...] = (
    *({"threshold": value} for value in (0.5, 0.7, 0.9, 0.99)),
    *({"entropy_bound": value} for value in (1.0, 0.5, 0.2, 0.05, 0.01)),
    *({"threshold": threshold, "remask": value} for threshold in (0.5, 0.9) for value in (0.1, 0.3)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per setting, and writes all as JSON."""
    parser = command_parser("denoise_policies", __doc__)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--seed", type=int, default=5, help="of the tasks")
    options = parsed(parser, arguments)
    torch.set_num_threads(1)
    llm = LLM(str(CHECKPOINT))
    tasks = list(generate("test", options.tasks, seed=options.seed))
    prompts = [llm.encode(task.messages) for task in tasks]
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        # A salt of its own, so that each setting reads all prompts anew.
        fixed = {"temperature": 0, "max_tokens": 128, "decoding": "diffusion", "block_length": 32}
        asked = GenerationOptions.model_validate({**fixed, **setting, "cache_salt": str(setting)})
        answers = llm.generate(prompts, asked, progress=False)
        right = [one.text.strip() == task.answer.strip() for one, task in zip(answers, tasks, strict=True)]
        reports = [one.report for one in answers if one.report is not None]
        # Without the one that reads the prompt; where that takes two, the second counts.
        forwards = sum(report.forwards - 1 for report in reports)
        interval = mean_interval(torch.tensor(right).double().numpy())
        row = {**setting, "right": interval.value, "low": interval.low, "high": interval.high}
        row["tokens_per_forward"] = sum(report.completion_tokens for report in reports) / forwards
        rows.append(row)
        said = ", ".join(f"{name} {value:g}" for name, value in setting.items())
        print(
            f"{said:30} right {row['right']:.3f} (95% {row['low']:.3f} to {row['high']:.3f}), tokens/forward "
            f"{row['tokens_per_forward']:.2f}",
            flush=True,
        )
    write_report(options, {"tasks": options.tasks, "seed": options.seed, "rows": rows})


if __name__ == "__main__":
    main()
