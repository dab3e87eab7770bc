"""Which tasks the next training step sees: short before long, and more of what is not yet right."""

from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from engine.tiny.objective import Row, clean_row, draw_noise
from engine.tiny.tasks import FAMILIES, draw
from engine.tiny.tokenizer import EOS_ID, render

FULL_SIZE_AT = 0.35  # share of the training at which answers have their full length
WARM_UP = 0.04  # share of the training in which copying comes first: other tasks are built on it
COPYING = ("replacing", "reversing")
LONG = ("addition", "replacing", "records", "code")


@dataclass(slots=True)
class Sample:
    """One training row with the task it came from."""

    task: str
    row: Row
    noisy_tokens: int


@dataclass
class Sampler:
    """Draws tasks; `exact` holds a running AR exact match of each task on data never seen before."""

    tokenizer: Tokenizer
    rng: Random
    exact: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 0.0))

    def weight(self, task: str, progress: float) -> float:
        """How often `task` is drawn: what is wrong more often comes more often, long answers half as often."""
        weight = 0.2 + (1 - self.exact[task])
        if task in LONG:
            weight *= 0.5
        return weight * 4 if progress < WARM_UP and task in COPYING else weight

    def size(self, progress: float) -> float:
        """Answers grow from a fifth of their range to all of it; some stay short."""
        most = min(1.0, 0.2 + 0.8 * progress / FULL_SIZE_AT)
        return most if self.rng.random() < 0.8 else most * self.rng.random()

    def sample(self, progress: float, joint: bool) -> Sample:
        """One row; with `joint` it has a noisy half."""
        names = list(FAMILIES)
        name = self.rng.choices(names, [self.weight(task, progress) for task in names])[0]
        task = draw(self.rng, name, "train", self.size(progress))
        prompt = self.tokenizer.encode(render(task.messages), add_special_tokens=False).ids
        answer = [*self.tokenizer.encode(task.answer, add_special_tokens=False).ids, EOS_ID]
        row = clean_row(prompt, answer)
        clean = len(row.ids)
        if joint:
            draw_noise(row, len(prompt), answer, self.rng)
        return Sample(name, row, len(row.ids) - clean)

    def step(self, tokens: int, progress: float, joint: bool) -> list[Sample]:
        """The samples of one step, about `tokens` tokens in all, short rows first."""
        samples: list[Sample] = []
        total = 0
        while total < tokens:
            samples.append(self.sample(progress, joint))
            total += len(samples[-1].row.ids)
        return sorted(samples, key=lambda sample: len(sample.row.ids))


def micro_batches(samples: list[Sample], tokens: int) -> list[list[Sample]]:
    """Cuts sorted samples into batches of at most `tokens` padded tokens (or one row)."""
    batches: list[list[Sample]] = []
    for sample in samples:
        if batches and (len(batches[-1]) + 1) * len(sample.row.ids) <= tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches
