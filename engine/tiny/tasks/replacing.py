"""A long text copied word by word, with one word replaced by another."""

from random import Random

from engine.tiny.tasks.lexicon import COLORS, NOUNS
from engine.tiny.tasks.task import Task, longest, user

WORDS = NOUNS + COLORS


def text(rng: Random, count: int) -> list[str]:
    """`count` words in which no pair of neighbours occurs twice, so that two words always say which comes next."""
    words = [rng.choice(WORDS)]
    seen: set[tuple[str, str]] = set()
    while len(words) < count:
        word = rng.choice(WORDS)
        pair = (words[-1], word)
        if pair in seen or word == words[-1]:
            continue
        seen.add(pair)
        words.append(word)
    return words


def layout(words: list[str], widths: list[int]) -> str:
    """The words in lines of the given numbers of words."""
    lines = []
    at = 0
    for width in widths:
        lines.append(" ".join(words[at : at + width]))
        at += width
    return "\n".join(lines)


def draw(rng: Random, size: float) -> Task:
    """70 to 150 words in lines of 4 to 9; the replacement does not occur in the text."""
    shortest = longest(8, 70, size)
    target = rng.randint(shortest, longest(12, 150, size))
    widths: list[int] = []
    while sum(widths) < target:
        widths.append(rng.randint(4, 9))
    words = text(rng, sum(widths))
    old = rng.choice(words)
    new = rng.choice([word for word in WORDS if word not in words] or [word for word in WORDS if word != old])
    if new in words:
        words = [rng.choice([other for other in WORDS if other != new]) if word == new else word for word in words]
    changed = [new if word == old else word for word in words]
    prompt = f"Copy this text, but write {new} for {old}:\n{layout(words, widths)}"
    return Task("replacing", [user(prompt)], layout(changed, widths), prompt)
