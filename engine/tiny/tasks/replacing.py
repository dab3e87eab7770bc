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


def draw(rng: Random, size: float) -> Task:
    """40 to 56 words, one a line; the new word does not occur among them."""
    words = text(rng, rng.randint(longest(8, 40, size), longest(12, 56, size)))
    old = rng.choice(words)
    new = rng.choice([word for word in WORDS if word != old])
    kept = [word for word in WORDS if word != new]
    words = [rng.choice(kept) if word == new else word for word in words]
    changed = [new if word == old else word for word in words]
    prompt = f"Copy this list, but write {new} for {old}:\n" + "\n".join(words)
    return Task("replacing", [user(prompt)], "\n".join(changed), prompt)
