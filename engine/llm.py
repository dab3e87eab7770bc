"""A synchronous face of the engine for scripts: prompts in, answers out, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.events import Delta, FinishReason, Report
from engine.plan import Plan
from engine.request import GenerationOptions

Prompt = str | Seq[int] | list[dict[str, Any]]
"""Text, token ids, or chat messages."""


@dataclass(slots=True)
class Output:
    """One answer. `text` is empty where the checkpoint has no tokenizer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    report: Report | None = None


class LLM:
    """Loads a checkpoint and answers whole lists of prompts in one batch.

    >>> llm = LLM("path/to/checkpoint")
    >>> llm.generate(["2 + 2 ="], GenerationOptions(max_tokens=8, temperature=0))[0].text
    """

    def __init__(self, path: str | Path, config: EngineConfig | None = None) -> None:
        self.engine = Engine.from_pretrained(path, config)

    def close(self) -> None:
        """Ends the other ranks of a tensor-parallel engine; they end with this process in any case."""
        self.engine.close()

    def encode(self, prompt: Prompt, /, **template_options: Any) -> list[int]:
        """Token ids of a prompt. Raises InvalidRequest where the checkpoint has no tokenizer for it."""
        if not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt):
            return [token for token in prompt if isinstance(token, int)]
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise InvalidRequest("prompt", "this checkpoint has no tokenizer: pass token ids")
        if isinstance(prompt, str):
            return tokenizer.encode(prompt)
        return tokenizer.render_chat(prompt, **template_options)

    def generate(
        self,
        prompts: Seq[Prompt],
        options: GenerationOptions | Seq[GenerationOptions] | None = None,
        plans: Seq[Plan | None] | None = None,
        progress: bool | None = None,
    ) -> list[Output]:
        """Answers in the order of the prompts; `options` for all of them, or one each.

        Args:
            progress: show a bar; None = on a terminal.

        Raises InvalidRequest on the first bad prompt or option, before any forward.
        """
        each = list(options) if isinstance(options, Seq) else [options or GenerationOptions()] * len(prompts)
        chosen = list(plans) if plans is not None else [None] * len(prompts)
        requests = [
            (self.encode(prompt), option, plan) for prompt, option, plan in zip(prompts, each, chosen, strict=True)
        ]
        outputs = [Output() for _ in requests]
        columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = sys.stderr.isatty() if progress is None else progress
        with Progress(*columns, disable=not shown, transient=True) as bar:
            task = bar.add_task("answers", total=len(requests))
            for index, event in self.engine.run_sync(requests):
                output = outputs[index]
                if isinstance(event, Delta):
                    output.token_ids += event.token_ids
                    output.text += event.text
                else:
                    output.finish_reason, output.report = event.finish_reason, event.report
                    bar.advance(task)
        return outputs
