"""Evaluation sets: prompts with or without answers, split three ways by their content.

The curve is measured on `test`, the ladder is chosen on `calibration` and its qualities come from `selection`, so that
no number is reported on the prompts that it was chosen for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.calibration.cells import SPLITS, Split
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import InvalidRequest, StepdialError
from engine.request import shown

Metric = Literal["exact_match", "agreement_with_ar"]
METRICS: dict[Metric, str] = {
    "exact_match": "share of answers that are the right text, blanks around it ignored",
    "agreement_with_ar": "share of answers with the same tokens as the model's own AR answer at temperature 0",
}
PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")
SHARES: dict[Split, int] = {"calibration": 4, "selection": 3, "test": 3}
"""Tenths of a user's prompts per split."""
TASK_SEED = 7
DEFAULT_LABEL = "default"
FEWEST = 10
MOST_PROBLEMS = 20


class EvaluationError(StepdialError):
    """An evaluation set that cannot be used; the message lists every problem that was found."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the model sees it, its right answer where one is known, and its workload label."""

    token_ids: tuple[int, ...]
    answer: str | None = None
    label: str = DEFAULT_LABEL

    @property
    def key(self) -> str:
        """Changes with the prompt and its answer."""
        return hashlib.blake2b(repr((self.token_ids, self.answer)).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Three splits that share no prompt.

    Attributes:
        source: where the prompts come from, for the report. digest: changes with the prompts and their order.
        repeated: lines that were left out because their prompt had been seen.
    """

    source: str
    digest: str
    splits: Mapping[Split, tuple[Prompt, ...]]
    repeated: int = 0

    @property
    def metric(self) -> Metric:
        """`exact_match` where every prompt has an answer, else agreement with AR."""
        everyone = all(prompt.answer is not None for prompts in self.splits.values() for prompt in prompts)
        return "exact_match" if everyone else "agreement_with_ar"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a prompt must fit: the vocabulary, and the context less the longest answer."""

    vocab_size: int
    context: int
    max_tokens: int


def built_in_set(tokenizer: Tokenizer, counts: Mapping[Split, int]) -> EvaluationSet:
    """stepdial-tiny's own tasks. No two splits share a combination: `test` is the task generator's, `calibration` and
    `selection` are halves of its calibration split, by a hash of the combination."""
    from engine.tiny.tasks import Task, generate

    def prompt(task: Task) -> Prompt:
        return Prompt(tuple(tokenizer.render_chat(task.messages)), task.answer, task.task)

    splits: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    splits["test"] = [prompt(task) for task in generate("test", counts["test"], TASK_SEED)]
    # The stream is the same for any count, so a longer run's prompts begin with a shorter one's.
    most = 4 * (counts["calibration"] + counts["selection"]) + 1000
    for task in generate("calibration", most, TASK_SEED):
        # Another key than the generator's own split hash, whose remainder is the same for the whole split.
        place = _bucket(f"selection\0{task.task}\0{task.combination}".encode(), 2)
        half: Split = "selection" if place else "calibration"
        if len(splits[half]) < counts[half]:
            splits[half].append(prompt(task))
        if all(len(splits[split]) >= counts[split] for split in ("calibration", "selection")):
            break
    for split, rows in splits.items():
        if len(rows) < counts[split]:
            raise EvaluationError(f"the tasks give {len(rows)} of {counts[split]} prompts for the {split} split")
    return EvaluationSet(
        "stepdial-tiny's tasks", f"tasks-{TASK_SEED}", {split: tuple(rows) for split, rows in splits.items()}
    )


def read_prompts(file: Path, tokenizer: Tokenizer | None, limits: Limits, counts: Mapping[Split, int]) -> EvaluationSet:
    """A user's JSON lines: `prompt`, `messages` or `prompt_token_ids`, and optionally `answer` and `label`.

    A prompt's split and its place in it follow from a hash of its tokens, so a file in any order gives the same splits,
    and a repeated prompt is used once.

    Raises EvaluationError that lists bad lines by number and field, or says which split has too few prompts.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file} cannot be read: {error}") from None
    problems: list[str] = []
    found: dict[bytes, Prompt] = {}
    repeated = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _parse(line, tokenizer, limits)
        except InvalidRequest as error:
            problems.append(f"line {number}, {error.field}: {error.message}")
            continue
        key = hashlib.blake2b(json.dumps(prompt.token_ids).encode(), digest_size=16).digest()
        repeated += key in found
        found.setdefault(key, prompt)
    if problems:
        shown_problems = problems[:MOST_PROBLEMS]
        more = len(problems) - len(shown_problems)
        tail = [f"and {more} more"] if more else []
        raise EvaluationError("\n".join([f"{file} has {len(problems)} bad lines:", *shown_problems, *tail]))
    digest = hashlib.blake2b(digest_size=8)
    splits: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    for key in sorted(found):
        digest.update(key + repr((found[key].answer, found[key].label)).encode())
        split = _split_of(key)
        if len(splits[split]) < counts[split]:
            splits[split].append(found[key])
    for split, rows in splits.items():
        if len(rows) < FEWEST:
            raise EvaluationError(
                f"{file} leaves {len(rows)} prompts for the {split} split (of {len(found)} different ones); allowed: "
                f"at least {FEWEST}, so give more prompts"
            )
    return EvaluationSet(
        file.name, digest.hexdigest(), {split: tuple(rows) for split, rows in splits.items()}, repeated
    )


def _bucket(content: bytes, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big") % count


def _split_of(key: bytes) -> Split:
    place = _bucket(b"split" + key, sum(SHARES.values()))
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares cover every bucket")


def _parse(line: str, tokenizer: Tokenizer | None, limits: Limits) -> Prompt:
    """One line. Raises InvalidRequest naming the field."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("line", f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("line", f"must be a JSON object, not {type(data).__name__}")
    ids = _token_ids(data, tokenizer)
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise InvalidRequest("prompt_token_ids", f"has token id {token}; allowed: 0 to {limits.vocab_size - 1}")
    longest = limits.context - limits.max_tokens
    if not 1 <= len(ids) <= longest:
        raise InvalidRequest(
            "prompt", f"has {len(ids)} tokens; allowed: 1 to {longest} (context {limits.context} less max-tokens)"
        )
    answer, label = data.get("answer"), data.get("label", DEFAULT_LABEL)
    if answer is not None and not isinstance(answer, str):
        raise InvalidRequest("answer", f"is {shown(answer)}; allowed: a string")
    if answer is not None and tokenizer is None:
        raise InvalidRequest("answer", "cannot be compared: this checkpoint has no tokenizer")
    if not isinstance(label, str) or not label:
        raise InvalidRequest("label", f"is {shown(label)}; allowed: a string that is not empty")
    return Prompt(tuple(ids), answer, label)


def _token_ids(data: dict[str, Any], tokenizer: Tokenizer | None) -> list[int]:
    given = [name for name in PROMPT_FIELDS if data.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest("prompt", f"give exactly one of {', '.join(PROMPT_FIELDS)} (got {given or 'none'})")
    name, value = given[0], data[given[0]]
    if name == "prompt_token_ids":
        if isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return value
        raise InvalidRequest(name, f"is {shown(value)}; allowed: a list of token ids")
    if tokenizer is None:
        raise InvalidRequest(name, "needs a tokenizer, which this checkpoint lacks; give prompt_token_ids")
    if name == "messages":
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise InvalidRequest(name, f"is {shown(value)}; allowed: a list of at least one message")
        return tokenizer.render_chat(value)
    if not isinstance(value, str):
        raise InvalidRequest(name, f"is {shown(value)}; allowed: text")
    return tokenizer.encode(value)
