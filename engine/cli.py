"""The `stepdial` command. Heavy imports wait until a command needs them, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve and examine diffusion language models.",
    pretty_exceptions_enable=False,
)

Split = Literal["train", "calibration", "test"]
Quantization = Literal["none", "fp8"]
T = TypeVar("T", int, float)
SHIPPED = Path(__file__).parent / "tiny" / "checkpoint"


@app.command("run-batch")
def run_batch_command(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")],
    input: Annotated[Path, typer.Option(help="JSON lines, one request each.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option(help="JSON lines, one answer each, in input order.")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it computes.")] = "cpu",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic type.")] = "auto",
    quantization: Annotated[Quantization, typer.Option(help="fp8: the layers' weights in FP8.")] = "none",
    threads: Annotated[int | None, typer.Option(help="Torch threads.", min=1)] = None,
    tp: Annotated[Literal["1", "2", "4", "8"], typer.Option(help="Processes that share the model.")] = "1",
) -> None:
    """Answer a file of requests offline."""
    from engine.config import EngineConfig
    from engine.errors import StepdialError
    from engine.llm import LLM
    from engine.run_batch import run_batch_files

    try:
        config = {
            "device": device, "dtype": dtype, "quantization": quantization, "threads": threads, "tp": int(tp)
        }  # fmt: skip
        llm = LLM(model, EngineConfig.model_validate(config))
        try:
            answered, failed = run_batch_files(llm, input, output)
        finally:
            llm.close()
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
    quantization: Annotated[Quantization, typer.Option(help="Of the layers' weights, for the plan.")] = "none",
) -> None:
    """Check a checkpoint without loading it, and plan its memory."""
    from engine.checkpoint.inspect import describe, render
    from engine.errors import StepdialError

    try:
        description = describe(model, quantization=quantization)
    except StepdialError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        render(description)


@app.command("calibrate")
def calibrate_command(
    model: Annotated[
        Path, typer.Option(help="Checkpoint directory.", show_default="the shipped stepdial-tiny")
    ] = SHIPPED,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines: prompt, messages or prompt_token_ids, and optionally answer and label; stepdial-tiny has "
            "its own tasks.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    built_in_tasks: Annotated[
        bool, typer.Option("--built-in-tasks", help="Use stepdial-tiny's tasks for another training of it.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder of the reports and of the rows to go on from.")] = Path(
        "calibration"
    ),
    prompts_per_cell: Annotated[int, typer.Option(help="Most prompts of the test split.", min=10)] = 1000,
    calibration_prompts: Annotated[int, typer.Option(help="Most prompts that the ladder is chosen on.", min=10)] = 500,
    selection_prompts: Annotated[int, typer.Option(help="Most prompts for the ladder's qualities.", min=10)] = 500,
    sampled_prompts: Annotated[int, typer.Option(help="Test prompts above temperature 0.", min=10)] = 250,
    samples: Annotated[int, typer.Option(help="Answers per prompt above temperature 0.", min=1, max=1000)] = 2,
    load_prompts: Annotated[int, typer.Option(help="Prompts for the cost at each smaller load.", min=4)] = 24,
    loads: Annotated[str, typer.Option(help="Prompts at the same time, comma-separated.")] = "1,8,64",
    temperatures: Annotated[str, typer.Option(help="0 and others, comma-separated.")] = "0,0.7",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 288,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Arithmetic type.")] = "float32",
    quantization: Annotated[Quantization, typer.Option(help="fp8: the layers' weights in FP8.")] = "none",
    workers: Annotated[int, typer.Option(help="Processes, each with the whole model.", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="Torch threads of each.", min=1)] = 1,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; the rest is listed as missing.")] = None,
    install: Annotated[bool, typer.Option(help="Also write the curve and the ladder beside the checkpoint.")] = True,
) -> None:
    """Measure the quality of every rung, choose the ladder, and write both. Run again to go on after a stop."""
    import shlex

    from engine.calibration.calibrate import calibrate
    from engine.calibration.options import CalibrationOptions
    from engine.errors import StepdialError

    try:
        options = CalibrationOptions(
            model=model,
            prompts=prompts,
            built_in_tasks=built_in_tasks,
            output=output,
            test_prompts=prompts_per_cell,
            calibration_prompts=calibration_prompts,
            selection_prompts=selection_prompts,
            sampled_prompts=sampled_prompts,
            samples=samples,
            load_prompts=load_prompts,
            loads=_numbers(loads, int, "--loads"),
            temperatures=_numbers(temperatures, float, "--temperatures"),
            max_tokens=max_tokens,
            dtype=dtype,
            quantization=quantization,
            workers=workers,
            threads=threads,
            minutes=minutes,
            install=install,
            command=shlex.join(["stepdial", *sys.argv[1:]]),
        )
        done = calibrate(options, typer.echo)
    except StepdialError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from the rows in {output}", err=True)
        raise typer.Exit(130) from None
    if not done:
        raise typer.Exit(1)


def _numbers(text: str, number: type[T], option: str) -> tuple[T, ...]:
    """Comma-separated numbers of an option."""
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}; allowed: numbers with commas between them") from None


def main() -> None:
    """Entry point of the `stepdial` command."""
    app()


if __name__ == "__main__":
    main()
