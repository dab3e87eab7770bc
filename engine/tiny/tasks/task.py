"""What a task is, and the split that a combination belongs to."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]
Split = Literal["train", "calibration", "test"]

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt with its only correct answer.

    `combination` names what the task is made of, apart from its wording and order; it decides the split.
    """

    task: str
    messages: list[Message]
    answer: str
    combination: str


def split_of(task: str, combination: str) -> Split:
    """The one split in which this combination may appear: 80% train, 10% calibration, 10% test.

    A hash of the content and not of a seed, so that no two seeds can put a combination into two splits.
    """
    bucket = hashlib.blake2b(f"{task}\0{combination}".encode(), digest_size=4).digest()
    share = int.from_bytes(bucket, "big") % 10
    return "train" if share < 8 else ("calibration" if share == 8 else "test")


def user(content: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant turn of the history."""
    return {"role": "assistant", "content": content}


def longest(smallest: int, largest: int, size: float) -> int:
    """The largest length that `size` (0..1, 1 is the full task) allows."""
    return smallest + round((largest - smallest) * size)
