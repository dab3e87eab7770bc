"""Records as JSON: rows of a table, or facts stated in sentences."""

import json
from collections.abc import Callable
from random import Random

from engine.tiny.tasks.lexicon import CITIES, COLORS, JOBS, NAMES, NOUNS
from engine.tiny.tasks.task import Task, longest, user

Value = str | int

COLUMNS: dict[str, Callable[[Random], Value]] = {
    "age": lambda rng: rng.randint(10, 99),
    "city": lambda rng: rng.choice(CITIES),
    "color": lambda rng: rng.choice(COLORS),
    "item": lambda rng: rng.choice(NOUNS),
    "job": lambda rng: rng.choice(JOBS),
}


def as_json(rows: list[dict[str, Value]]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def table(rng: Random, size: float) -> Task:
    """Two to four columns; the names differ, so that each row can be told apart."""
    columns = rng.sample(sorted(COLUMNS), rng.randint(1, longest(1, 3, size)))
    most = {1: 14, 2: 10, 3: 7}[len(columns)]
    count = rng.randint(longest(1, most // 2, size), longest(2, most, size))
    rows: list[dict[str, Value]] = []
    for name in rng.sample(NAMES, count):
        rows.append({"name": name})
        rows[-1].update((column, COLUMNS[column](rng)) for column in columns)
    lines = [",".join(["name", *columns]), *(",".join(str(value) for value in row.values()) for row in rows)]
    return Task("records", [user("Write this table as JSON:\n" + "\n".join(lines))], as_json(rows), as_json(rows))


def sentences(rng: Random, size: float) -> Task:
    """One sentence a person, always with the same three fields."""
    count = rng.randint(longest(1, 3, size), longest(2, 8, size))
    rows: list[dict[str, Value]] = []
    for name in rng.sample(NAMES, count):
        rows.append({"name": name, "job": rng.choice(JOBS), "city": rng.choice(CITIES)})
    facts = "\n".join(f"{row['name']} is a {row['job']} and lives in {row['city']}." for row in rows)
    return Task("records", [user("Write these facts as JSON:\n" + facts)], as_json(rows), as_json(rows))


def draw(rng: Random, size: float) -> Task:
    """A table three times out of four."""
    return table(rng, size) if rng.random() < 0.75 else sentences(rng, size)
