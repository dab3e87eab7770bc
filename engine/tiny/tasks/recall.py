"""Recall of an earlier turn: facts told one by one, then a question about one of them."""

from random import Random

from engine.tiny.tasks.lexicon import CITIES, COLORS, NAMES
from engine.tiny.tasks.task import Message, Task, assistant, longest, user

KINDS = ("age", "city", "code", "color", "height", "score")


def value_of(kind: str, rng: Random) -> str:
    """A value: a word, four digits for a code, else two."""
    if kind == "city":
        return rng.choice(CITIES)
    if kind == "color":
        return rng.choice(COLORS)
    return f"{rng.randrange(10000):04}" if kind == "code" else str(rng.randint(10, 99))


def draw(rng: Random, size: float) -> Task:
    """2 to 5 facts in turns of their own, each of another kind."""
    count = rng.randint(2, longest(2, 5, size))
    kinds, names = rng.sample(KINDS, count), rng.sample(NAMES, count)
    facts = [(name, kind, value_of(kind, rng)) for name, kind in zip(names, kinds, strict=True)]
    messages: list[Message] = []
    for name, kind, value in facts:
        messages += [user(f"The {kind} of {name} is {value}."), assistant("Noted.")]
    name, kind, value = rng.choice(facts)
    messages.append(user(f"What is the {kind} of {name}?"))
    combination = " ".join(f"{n} {k} {v}" for n, k, v in facts)
    return Task("recall", messages, f"The {kind} of {name} is {value}.", f"{combination} {name}")
