"""Sorting of numbers and of words."""

from random import Random

from engine.tiny.tasks.lexicon import NOUNS
from engine.tiny.tasks.task import Task, longest, user


def draw(rng: Random, size: float) -> Task:
    """3 to 9 two-digit numbers or words, all different."""
    if rng.random() < 0.5:
        numbers = rng.sample(range(10, 100), rng.randint(3, longest(4, 9, size)))
        prompt = "Sort these numbers: " + " ".join(map(str, numbers))
        answer = " ".join(str(number) for number in sorted(numbers))
        return Task("sorting", [user(prompt)], answer, answer)
    words = rng.sample(NOUNS, rng.randint(3, longest(4, 9, size)))
    prompt = "Sort these words:\n" + "\n".join(words)
    answer = "\n".join(sorted(words))
    return Task("sorting", [user(prompt)], answer, answer)
