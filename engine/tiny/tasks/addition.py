"""Worked-out addition: column by column from the right, with the carry, then the total."""

from random import Random

from engine.tiny.tasks.task import Task, longest, user

SMALLEST, LARGEST = 3, 8


def work_out(left: str, right: str) -> str:
    """The columns of `left + right` (same number of digits) from the right, and the total on the last line."""
    lines = []
    carry = 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        column = int(a) + int(b) + carry
        lines.append(f"{a}+{b}+{carry}={column % 10} carry {column // 10}")
        carry = column // 10
    return "\n".join([*lines, f"total {int(left) + int(right)}"])


def draw(rng: Random, size: float) -> Task:
    """Two numbers of 3 to 8 digits; 11 answer tokens a column."""
    digits = rng.randint(SMALLEST, longest(SMALLEST, LARGEST, size))
    left, right = (str(rng.randint(10 ** (digits - 1), 10**digits - 1)) for _ in range(2))
    prompt = f"Add {left} and {right} column by column."
    return Task("addition", [user(prompt)], work_out(left, right), " ".join(sorted((left, right))))
