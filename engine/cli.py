"""The `stepdial` command. Heavy imports wait until a command needs them, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve and examine diffusion language models.",
    pretty_exceptions_enable=False,
)

Split = Literal["train", "calibration", "test"]


@app.command("run-batch")
def run_batch_command(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")],
    input: Annotated[Path, typer.Option(help="JSON lines, one request each.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option(help="JSON lines, one answer each, in input order.")],
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic type.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Torch threads.", min=1)] = None,
) -> None:
    """Answer a file of requests offline."""
    from engine.config import EngineConfig
    from engine.errors import StepdialError
    from engine.llm import LLM
    from engine.run_batch import run_batch_files

    try:
        answered, failed = run_batch_files(LLM(model, EngineConfig(dtype=dtype, threads=threads)), input, output)
    except StepdialError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{answered} answered, {failed} with an error, written to {output}", err=True)


@app.command("tasks")
def tasks_command(
    split: Annotated[Split, typer.Option(help="Splits share no combination.")],
    count: Annotated[int, typer.Option(help="How many.", min=1)],
    seed: Annotated[int, typer.Option(help="Same seed, same tasks.")] = 0,
) -> None:
    """Print tasks with exactly one correct answer, as JSON lines: task, messages, answer."""
    from engine.tiny.tasks import generate

    for task in generate(split, count, seed):
        sys.stdout.write(
            json.dumps({"task": task.task, "messages": task.messages, "answer": task.answer}, ensure_ascii=False) + "\n"
        )


@app.command("inspect")
def inspect_command(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory.", exists=True, file_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a checkpoint without loading it, and plan its memory."""
    from engine.checkpoint.inspect import describe, render
    from engine.errors import StepdialError

    try:
        description = describe(model)
    except StepdialError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        render(description)


def main() -> None:
    """Entry point of the `stepdial` command."""
    app()


if __name__ == "__main__":
    main()
