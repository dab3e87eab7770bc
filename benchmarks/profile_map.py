"""Which mode wins where: prompt length x output length x requests at a time.

`python -m benchmarks.profile_map [--concurrency 1 4 16 64] [--minutes 12]`

Closed loop on test tasks of the model that ships, sorted by the lengths of prompt and answer, so that drafts are
accepted as often as on real answers. The longest prompts are tasks after earlier turns of the same chat, longer than
what the model was trained on: there it writes up to the right answer's length, whatever it writes. Every mode is shown
as its tokens per second over AR's in the same cell, losses included. Written are a JSON file and a picture beside
it: one row of maps per mode and one for the winner among the modes of AR's quality.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.policies import Fixed
from benchmarks.policy_run import Window, in_loop, warm_engines
from benchmarks.profile_plot import plot
from benchmarks.promise_report import rung_name
from benchmarks.promise_setup import tokenizer_of
from benchmarks.promise_trace import Request, length_class
from benchmarks.turns import Turns, window_weight
from engine.engine import load_ladder
from engine.plan import AR, Rung, diffusion, self_speculation
from engine.request import equivalent_to_ar
from engine.tiny.tasks import generate

if TYPE_CHECKING:
    from engine.checkpoint.tokenizer import Tokenizer
    from engine.tiny.tasks import Message, Task

PROMPT_CLASSES: Mapping[str, tuple[int, int]] = {
    "up to 48": (1, 48), "49 to 96": (49, 96), "97 to 160": (97, 160), "about 512": (448, 576),
}  # fmt: skip
"""Prompt tokens; the last class is made of several turns."""
OUTPUT_CLASSES: Mapping[str, tuple[int, int]] = {"up to 31": (1, 31), "32 to 95": (32, 95), "96 and more": (96, 256)}
"""Tokens of the right answer."""
MANY_TURNS = 448
PROMPTS = 96
FEWEST_PROMPTS = 8
TASKS = 6000
RAMP = 0.5
LEAST_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class MapCell:
    """Prompts of one length whose answers have one length."""

    prompt_class: str
    output_class: str
    requests: list[Request]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, draws and writes."""
    options = _options(arguments)
    begun = perf_counter()
    ladder = load_ladder(options.model)
    rungs = modes(ladder)
    engines = warm_engines(options.model, options.kv_tokens, len(rungs))
    cells = cells_of(tokenizer_of(engines[0]), options.seed, options.prompts, options.tasks)
    equal = {rung.policy() for rung in equivalent_to_ar(ladder)}
    lossy = {rung_name(rung): not rung.exact and rung.policy() not in equal for rung in rungs}
    windows = len(cells) * len(rungs) * sum(window_weight(clients) for clients in options.concurrency)
    left_s = options.minutes * 60 - (perf_counter() - begun)
    seconds = options.seconds or max(LEAST_SECONDS, left_s / windows / (1 + RAMP))
    print(f"windows of {seconds:.1f} s at 1 request at a time; tokens/s over AR's, winner first", flush=True)
    turns = Turns(engines)
    policies = {place: Fixed(rung_name(rung), rung) for place, rung in enumerate(rungs)}
    rows: list[dict[str, Any]] = []
    try:
        for concurrency in options.concurrency:
            window_s = seconds * window_weight(concurrency)
            window = Window(RAMP * window_s, window_s, options.least_ended)
            for cell in cells:
                run = turns.closed_loops(policies, cell.requests, concurrency, window)
                measured = dict(zip(lossy, in_loop(run), strict=True))
                speeds = {name: closed.tokens_per_s for name, closed in measured.items()}
                right = {
                    name: sum(one.right for one in closed.ended) / len(closed.ended)
                    for name, closed in measured.items()
                }
                rows.append(row_of(cell, concurrency, speeds, right, lossy))
                _show(rows[-1])
                _write(options, rows, lossy, seconds)
    except KeyboardInterrupt:
        print("stopped; the files have what was complete")
    finally:
        for engine in engines:
            engine.stop()
    if rows:
        plot(rows, list(lossy), options.output.with_suffix(".png"))
    print(f"{perf_counter() - begun:.0f} s in all")


def modes(ladder: Sequence[Rung]) -> list[Rung]:
    """AR, drafts of four lengths, the released diffusion, and the fastest diffusion of the ladder."""
    chosen = [AR, *(self_speculation(length) for length in (4, 8, 16, 32)), diffusion(32, None, 0.9)]
    fastest = [rung for rung in ladder if rung.is_diffusion][-1:]
    return chosen + [rung for rung in fastest if rung.policy() != chosen[-1].policy()]


def cells_of(tokenizer: Tokenizer, seed: int, prompts: int, tasks: int) -> list[MapCell]:
    """Prompts of every combination of lengths that the tasks have at least `FEWEST_PROMPTS` of."""
    found: dict[tuple[str, str], list[Request]] = {(p, o): [] for p in PROMPT_CLASSES for o in OUTPUT_CLASSES}
    for request in [*_single_turns(tokenizer, seed, tasks), *_many_turns(tokenizer, seed, tasks)]:
        prompt_class = class_of(len(request.prompt), PROMPT_CLASSES)
        output_class = class_of(request.answer_tokens, OUTPUT_CLASSES)
        if prompt_class is not None and output_class is not None:
            chosen = found[prompt_class, output_class]
            if len(chosen) < prompts:
                chosen.append(request)
    return [MapCell(*names, requests) for names, requests in found.items() if len(requests) >= FEWEST_PROMPTS]


def class_of(tokens: int, classes: Mapping[str, tuple[int, int]]) -> str | None:
    """The class that a length belongs to; None between classes."""
    return next((name for name, (least, most) in classes.items() if least <= tokens <= most), None)


def row_of(
    cell: MapCell,
    concurrency: int,
    speeds: Mapping[str, float],
    right: Mapping[str, float],
    lossy: Mapping[str, bool],
) -> dict[str, Any]:
    """One cell of the map: every mode over AR, the winner of AR's quality and by how much it wins, and of all."""
    ar = speeds["ar"]
    faithful = sorted((name for name in speeds if not lossy[name]), key=lambda name: -speeds[name])
    winner, second = faithful[0], faithful[1]
    overall = max(speeds, key=lambda name: speeds[name])
    return {
        "prompt_tokens": cell.prompt_class,
        "output_tokens": cell.output_class,
        "concurrency": concurrency,
        "prompts": len(cell.requests),
        "tokens_per_s": dict(speeds),
        "over_ar": {name: speed / ar for name, speed in speeds.items()},
        "right": dict(right),
        "winner": winner,
        "winner_over_second": speeds[winner] / speeds[second],
        "second": second,
        "winner_with_lossy": overall,
    }


def _single_turns(tokenizer: Tokenizer, seed: int, tasks: int) -> Iterator[Request]:
    for index, task in enumerate(generate("test", tasks, seed)):
        yield _request(tokenizer, index, task.messages, task)


def _many_turns(tokenizer: Tokenizer, seed: int, tasks: int) -> Iterator[Request]:
    """Tasks after others, with their answers, as earlier turns of one chat."""
    earlier: list[Message] = []
    tokens = 0
    for index, task in enumerate(generate("test", tasks, seed + 1)):
        own = len(tokenizer.render_chat(task.messages))
        if tokens + own < MANY_TURNS:
            earlier += [*task.messages, {"role": "assistant", "content": task.answer}]
            tokens += own + _answer_tokens(tokenizer, task.answer)
        else:
            whole = _request(tokenizer, index, [*earlier, *task.messages], task)
            yield replace(whole, ignore_eos=True, max_tokens=whole.answer_tokens)
            earlier, tokens = [], 0


def _request(tokenizer: Tokenizer, index: int, messages: list[Message], task: Task) -> Request:
    tokens = _answer_tokens(tokenizer, task.answer)
    prompt = tokenizer.render_chat(messages)
    return Request(index, prompt, task.answer, tokens, task.task, "default", length_class(tokens), None)


def _answer_tokens(tokenizer: Tokenizer, answer: str) -> int:
    return len(tokenizer.encode(answer, add_bos=False)) + 1


def _show(row: dict[str, Any]) -> None:
    over = sorted(row["over_ar"].items(), key=lambda item: -item[1])
    print(
        f"prompt {row['prompt_tokens']:10} output {row['output_tokens']:12} at {row['concurrency']:2}: "
        f"{row['winner']} by {row['winner_over_second']:.2f} | "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in over),
        flush=True,
    )


def _write(options: argparse.Namespace, rows: list[dict[str, Any]], lossy: Mapping[str, bool], seconds: float) -> None:
    report = {
        "settings": {"window_s": seconds, "ramp": RAMP, "seed": options.seed},
        "lossy": dict(lossy),
        "cells": rows,
    }
    write_report(options, report)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("profile_map", __doc__, model=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--minutes", type=float, default=12, help="of the whole run (default 12)")
    parser.add_argument("--seconds", type=float, help="of each window instead")
    parser.add_argument("--least-ended", type=int, default=4, help="answers that a window waits for")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each cell")
    parser.add_argument("--tasks", type=int, default=TASKS, help="tasks to choose the prompts from")
    parser.add_argument("--seed", type=int, default=13, help="of the prompts")
    parser.add_argument("--kv-tokens", type=int, default=65_536)
    return parsed(parser, arguments)


if __name__ == "__main__":
    main()
