"""What is sent: shares, right answers, and the task nearest to a trace's lengths."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from random import Random

import pytest

from engine.tiny.tasks import Task, split_of
from locustfiles.trace_file import TraceRequest
from locustfiles.workload import (
    CODING_ASSISTANT,
    DOCUMENT_EDITOR,
    LOW_BATCH,
    MIXED_TIERS,
    Kind,
    TaskShelf,
    asks,
    of_lengths,
)


@pytest.mark.parametrize("kinds", [MIXED_TIERS, CODING_ASSISTANT, DOCUMENT_EDITOR, LOW_BATCH])
def test_kinds_come_in_their_shares_with_their_families(kinds: tuple[Kind, ...]) -> None:
    assert sum(kind.share for kind in kinds) == pytest.approx(1.0)
    sent = list(islice(asks(kinds, "m", Random(1)), 1500))
    counts = Counter(ask.label for ask in sent)
    for kind in kinds:
        sigma = math.sqrt(1500 * kind.share * (1 - kind.share))
        assert abs(counts[kind.label] - 1500 * kind.share) < 4 * sigma
        assert {ask.family for ask in sent if ask.label == kind.label} <= set(kind.families)


def test_every_tier_and_openai_s_own_values_are_in_the_mix() -> None:
    named = {kind.fields.get("service_tier") for kind in MIXED_TIERS}
    assert {"realtime", "interactive", "standard", "batch", "priority", "flex", None} <= named


def test_a_question_has_its_right_answer() -> None:
    reverse = (Kind("reverse", 1.0, {"latency_slo_ms": 900}, {"reversing": 1}),)
    ask = next(asks(reverse, "some-model", Random(2)))
    words = ask.body["messages"][-1]["content"].split("\n")[1:]
    assert ask.answer == "\n".join(reversed(words))
    assert split_of("reversing", " ".join(words)) == "test"
    assert (ask.body["model"], ask.body["latency_slo_ms"], ask.body["stream"]) == ("some-model", 900, True)


def test_the_shelf_finds_what_a_search_through_all_finds() -> None:
    rng = Random(3)
    tasks = [Task("t", [], "a" * rng.randint(1, 300), "p" * rng.randint(1, 500)) for _ in range(400)]

    def distance(task: Task, prompt: int, output: int) -> float:
        return abs(math.log(len(task.combination) / prompt)) + abs(math.log(len(task.answer) / output))

    shelf = TaskShelf(tasks, lambda task: len(task.combination), lambda task: len(task.answer))
    for _ in range(300):
        prompt, output = rng.randint(1, 600), rng.randint(1, 400)
        best = min(distance(task, prompt, output) for task in tasks)
        assert distance(shelf.nearest(prompt, output), prompt, output) == pytest.approx(best)


def test_an_empty_shelf_is_refused() -> None:
    with pytest.raises(ValueError, match="without tasks"):
        TaskShelf([], lambda task: 1, lambda task: 1)


def test_exact_lengths_have_no_right_answer_and_fit_the_context() -> None:
    ask = of_lengths(TraceRequest(0.0, 30, 20), Kind("k", 1.0), "m", range(101, 768), 4096, Random(4))
    assert (len(ask.body["prompt"]), ask.body["max_tokens"], ask.body["ignore_eos"]) == (30, 20, True)
    assert all(101 <= token < 768 for token in ask.body["prompt"])
    assert ask.answer is None
    for prompt, output in ((100, 20), (5, 500), (500, 500)):
        long = of_lengths(TraceRequest(0.0, prompt, output), Kind("k", 1.0), "m", range(101, 768), 64, Random(5))
        assert len(long.body["prompt"]) >= 1
        assert len(long.body["prompt"]) + long.body["max_tokens"] <= 64
