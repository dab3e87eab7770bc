"""A question whose answer is a span of a short paragraph."""

from random import Random

from engine.tiny.tasks.lexicon import CITIES, COLORS, JOBS, NAMES, NOUNS
from engine.tiny.tasks.task import Task, longest, user


def draw(rng: Random, size: float) -> Task:
    """2 to 5 sentences about different people, things and cities; the answer has two to four words."""
    count = rng.randint(2, longest(2, 5, size))
    people = [f"{name} the {job}" for name, job in zip(rng.sample(NAMES, count), rng.sample(JOBS, count), strict=True)]
    colors = rng.choices(COLORS, k=count)
    things = [f"{color} {noun}" for color, noun in zip(colors, rng.sample(NOUNS, count), strict=True)]
    cities = rng.sample(CITIES, count)
    facts = [f"{who} bought the {what} in {where}." for who, what, where in zip(people, things, cities, strict=True)]
    asked = rng.randrange(count)
    question, answer = rng.choice(
        (
            (f"Who bought the {things[asked]}?", people[asked]),
            (f"What did {people[asked]} buy?", f"the {things[asked]}"),
            (f"Where was the {things[asked]} bought?", f"in {cities[asked]}"),
            (f"Who went to {cities[asked]}?", people[asked]),
        )
    )
    return Task("question", [user("\n".join([*facts, question]))], answer, " ".join([*facts, question]))
