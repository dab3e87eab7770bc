"""What all benchmark commands share: their options, and the JSON file with what it was made with and on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.machine import machine

RESULTS = Path(__file__).parent / "results"
CHECKPOINT = Path(__file__).parents[1] / "engine" / "tiny" / "checkpoint"


def command_parser(name: str, description: str | None, model: bool = False) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.<name>`, with `--output`, and `--model` where any checkpoint will do."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog=f"python -m benchmarks.{name}",
    )
    if model:
        parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint directory")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="JSON file of the results")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; `command` is what was typed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = shlex.join([*parser.prog.split(), *given])
    return options


def write_report(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Writes model, command, machine and `report` to `--output`, whole or not at all."""
    model = getattr(options, "model", None)
    head = {} if model is None else {"model": "stepdial-tiny" if model == CHECKPOINT else model.name}
    torch = sys.modules.get("torch")
    threads = {} if torch is None else {"torch_threads": torch.get_num_threads()}
    head |= {
        "command": options.command,
        "machine": {**machine(), **threads},
        "load_average_at_end": round(os.getloadavg()[0], 2),
    }
    output: Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(head | report, indent=1) + "\n", encoding="utf-8")
    partial.replace(output)
