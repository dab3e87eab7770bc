"""Offline batches: a JSON object a line in, a JSON object a line out, in input order.

A line that cannot be served is reported in its own row; the others are done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import InvalidRequest
from engine.llm import LLM, Output
from engine.request import GenerationOptions, parse_options, shown

PROMPT_FIELDS = ("prompt", "prompt_token_ids", "messages")


def run_batch(llm: LLM, lines: Iterable[str], progress: bool | None = None) -> list[dict[str, Any]]:
    """Answers every line of a batch; blank lines are skipped.

    Returns one row per line: `{"id", "text", "token_ids", "finish_reason", "denoise_steps", "forwards", "stepdial",
    "error"}`; `error` is null, or `{"field", "message"}` and the rest is null.
    """
    rows: list[dict[str, Any]] = []
    prompts: list[list[int]] = []
    options: list[GenerationOptions] = []
    places: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row: dict[str, Any] = {"id": None}
        rows.append(row)
        try:
            data = _parse(line, number)
            row["id"] = data.get("id")
            option = parse_options(GenerationOptions, {key: data[key] for key in data if key not in PROMPT_FIELDS})
            prompt = _prompt(llm, data)
            # The engine's own checks, so that a line it would refuse does not stop the others.
            llm.engine.intake.sequence(f"line {number}", prompt, option, None, 0.0)
        except InvalidRequest as error:
            row.update(_empty(), error={"field": error.field, "message": error.message})
            continue
        prompts.append(prompt)
        options.append(option)
        places.append(len(rows) - 1)
    for place, output in zip(places, llm.generate(prompts, options, progress=progress), strict=True):
        rows[place].update(_answer(output))
    return rows


def run_batch_files(llm: LLM, source: Path, target: Path, progress: bool | None = None) -> tuple[int, int]:
    """`run_batch` from file to file. Returns how many rows were answered and how many had an error."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = run_batch(llm, file, progress)
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            # Escaped, because an id may hold a lone surrogate, which no encoding can write.
            file.write(json.dumps(row) + "\n")
    failed = sum(row["error"] is not None for row in rows)
    return len(rows) - failed, failed


def _parse(line: str, number: int) -> dict[str, Any]:
    try:
        line.encode()
        data = json.loads(line)
    except UnicodeEncodeError:
        raise InvalidRequest("body", f"line {number} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        # Besides bad syntax: a number of more digits than Python reads, and arrays nested too deep.
        raise InvalidRequest("body", f"line {number} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("body", f"line {number} must be a JSON object, not {type(data).__name__}")
    return data


def _prompt(llm: LLM, data: dict[str, Any]) -> list[int]:
    """The token ids of a line's one prompt field."""
    given = [name for name in PROMPT_FIELDS if data.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest("prompt", f"give exactly one of {', '.join(PROMPT_FIELDS)} (got {given or 'none'})")
    name, value = given[0], data[given[0]]
    if name == "messages":
        names = data.get("chat_template_kwargs") or {}
        if not isinstance(names, dict):
            raise InvalidRequest("chat_template_kwargs", f"chat_template_kwargs is {shown(names)}; allowed: an object")
        thinking = data.get("enable_thinking")
        template = names if thinking is None else {**names, "enable_thinking": bool(thinking)}
        if not isinstance(value, list) or not all(isinstance(message, dict) for message in value) or not value:
            raise InvalidRequest("messages", f"messages is {shown(value)}; allowed: a list of at least one message")
        return llm.encode(value, **template)
    if name == "prompt" and isinstance(value, str):
        return llm.encode(value)
    if isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        return value
    raise InvalidRequest(name, f"{name} is {shown(value)}; allowed: {'text or ' if name == 'prompt' else ''}token ids")


def _answer(output: Output) -> dict[str, Any]:
    report = output.report
    if report is None:
        raise RuntimeError("an answer ended without a report")
    return {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "denoise_steps": report.denoise_steps,
        "forwards": report.forwards,
        "stepdial": report.to_dict(),
        "error": None,
    }


def _empty() -> dict[str, None]:
    return dict.fromkeys(("text", "token_ids", "finish_reason", "denoise_steps", "forwards", "stepdial"))
