"""Short sums, answered at once."""

from random import Random

from engine.tiny.tasks.task import Task, longest, user


def draw(rng: Random, size: float) -> Task:
    """Two numbers of one to three digits."""
    most = longest(1, 3, size)
    left, right = (rng.randint(0, 10 ** rng.randint(min(2, most), most) - 1) for _ in range(2))
    combination = f"{min(left, right)} {max(left, right)}"
    return Task("sums", [user(f"What is {left} + {right}?")], str(left + right), combination)
