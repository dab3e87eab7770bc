"""A list of words from its end to its start."""

from random import Random

from engine.tiny.tasks.lexicon import COLORS, NOUNS
from engine.tiny.tasks.task import Task, longest, user


def draw(rng: Random, size: float) -> Task:
    """3 to 24 different words."""
    words = rng.sample(NOUNS + COLORS, rng.randint(3, longest(4, 24, size)))
    prompt = "Reverse this list:\n" + "\n".join(words)
    return Task("reversing", [user(prompt)], "\n".join(reversed(words)), " ".join(words))
