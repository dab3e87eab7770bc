"""Recall of an earlier turn: facts told one by one, then a question about one of them."""

from random import Random

from engine.tiny.tasks.lexicon import CITIES, COLORS, NAMES
from engine.tiny.tasks.task import Message, Task, assistant, longest, user


def draw(rng: Random, size: float) -> Task:
    """2 to 4 facts in turns of their own; codes have four digits."""
    facts = []
    for name in rng.sample(NAMES, rng.randint(2, longest(2, 4, size))):
        kind = rng.choice(("code", "city", "color"))
        value = {"code": f"{rng.randrange(10000):04}", "city": rng.choice(CITIES), "color": rng.choice(COLORS)}[kind]
        facts.append((name, kind, value))
    messages: list[Message] = []
    for name, kind, value in facts:
        messages += [user(f"The {kind} of {name} is {value}."), assistant("Noted.")]
    name, kind, value = rng.choice(facts)
    messages.append(user(f"What is the {kind} of {name}?"))
    combination = " ".join(f"{n} {k} {v}" for n, k, v in facts)
    return Task("recall", messages, f"The {kind} of {name} is {value}.", f"{combination} {name}")
