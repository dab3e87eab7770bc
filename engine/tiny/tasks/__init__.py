"""The tasks of the small model: templates with one correct answer each, looking like work people give such a model."""

from collections.abc import Callable, Iterator
from random import Random

from engine.tiny.tasks import (
    addition,
    code,
    gap,
    recall,
    records,
    replacing,
    reversing,
    sorting,
)
from engine.tiny.tasks.task import SPLITS, Message, Split, Task, split_of

__all__ = ["FAMILIES", "SPLITS", "Message", "Split", "Task", "draw", "generate", "split_of"]

FAMILIES: dict[str, Callable[[Random, float], Task]] = {
    "addition": addition.draw,
    "sorting": sorting.draw,
    "reversing": reversing.draw,
    "replacing": replacing.draw,
    "records": records.draw,
    "gap": gap.draw,
    "code": code.draw,
    "recall": recall.draw,
}

# Families with long answers come more often: a third of all answers has 96 tokens or more.
SHARES = {name: 2.0 if name in {"replacing", "records", "code"} else 1.0 for name in FAMILIES}


def draw(rng: Random, task: str, split: Split = "train", size: float = 1.0) -> Task:
    """One task of the family `task` whose combination belongs to `split`; `size` (0..1) shortens it."""
    while True:
        drawn = FAMILIES[task](rng, size)
        if split_of(drawn.task, drawn.combination) == split:
            return drawn


def generate(split: Split, count: int, seed: int) -> Iterator[Task]:
    """`count` tasks of `split`, the same for the same seed. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rng = Random(f"stepdial-tiny {split} {seed}")
    names, shares = list(SHARES), list(SHARES.values())
    for _ in range(count):
        yield draw(rng, rng.choices(names, shares)[0], split)
