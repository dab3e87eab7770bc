"""Python lines that the prompt determines: a class with its fields, its constructor and its getters."""

from random import Random

from engine.tiny.tasks.lexicon import CLASSES, FIELDS
from engine.tiny.tasks.task import Task, longest, user


def source(name: str, fields: list[str], getters: list[str]) -> str:
    """The class: a constructor that stores every field, then one getter for each of `getters`."""
    lines = [f"class {name}:", f"    def __init__(self, {', '.join(fields)}):"]
    lines += [f"        self.{field} = {field}" for field in fields]
    for field in getters:
        lines += [f"    def get_{field}(self):", f"        return self.{field}"]
    return "\n".join(lines)


def draw(rng: Random, size: float) -> Task:
    """2 to 8 fields, some of them with a getter, in the order of the prompt."""
    count = rng.randint(longest(2, 4, size), longest(3, 8, size))
    fields = rng.sample(FIELDS, count)
    getters = rng.sample(fields, rng.randint(longest(0, 2, size), min(count, longest(1, 6, size))))
    name = rng.choice(CLASSES)
    prompt = f"Write a class {name} with fields {', '.join(fields)}"
    prompt += f" and getters for {', '.join(getters)}." if getters else "."
    return Task("code", [user(prompt)], source(name, fields, getters), prompt)
