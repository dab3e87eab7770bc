"""Which tasks the next training step sees: short before long, and more of what is not yet right."""

from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from engine.tiny.objective import Row, clean_row, draw_noise
from engine.tiny.tasks import FAMILIES, draw
from engine.tiny.tokenizer import EOS_ID, render

LONG = ("addition", "replacing", "records", "code")
MEMORY = 0.97  # of the running exact match, per sample
LEARNED = 0.75  # exact match at which a task's answers become longer
FULL_SIZE_FROM, FULL_SIZE_AT = 0.45, 0.8  # progress over which every task reaches its full size, learned or not


@dataclass(slots=True)
class Sample:
    """One training row with the task it came from."""

    task: str
    size: float
    row: Row
    noisy_tokens: int


@dataclass
class Sampler:
    """Draws tasks. Each has a level (0..1, the size of its answers) that rises when it is learned.

    `exact` holds a running AR exact match of each task at its level, `denoised` how often every mask of a row was right
    in the joint phase, both on data never seen before. `more` multiplies the weight of single tasks.
    """

    tokenizer: Tokenizer
    rng: Random
    exact: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 0.0))
    denoised: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 0.0))
    level: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 0.05))
    more: dict[str, float] = field(default_factory=dict)

    def weight(self, task: str, joint: bool) -> float:
        """How often `task` is drawn: what is wrong more often comes more often, long answers down to half as often."""
        length = 1 - 0.5 * self.level[task] if task in LONG else 1.0
        wrong = (1 - self.exact[task]) + 0.5 * (1 - self.level[task]) + 2 * joint * (1 - self.denoised[task])
        return (0.25 + wrong) * length * self.more.get(task, 1.0)

    def size(self, task: str, progress: float) -> float:
        """Mostly the task's level, sometimes less."""
        least = min(1.0, (progress - FULL_SIZE_FROM) / (FULL_SIZE_AT - FULL_SIZE_FROM))
        self.level[task] = max(self.level[task], least)
        return self.level[task] * (1 if self.rng.random() < 0.8 else self.rng.random())

    def note(self, sample: Sample, right: bool, masks_right: bool) -> None:
        """Counts an answer; a task that is mostly right at its level goes on to longer ones."""
        task = sample.task
        if sample.noisy_tokens:
            self.denoised[task] += (1 - MEMORY) * (masks_right - self.denoised[task])
        if sample.size < self.level[task]:
            return
        self.exact[task] += (1 - MEMORY) * (right - self.exact[task])
        if self.exact[task] > LEARNED and self.level[task] < 1:
            self.level[task] = min(1.0, self.level[task] * 1.15 + 0.02)
            self.exact[task] *= 0.8

    def sample(self, progress: float, joint: bool) -> Sample:
        """One row; with `joint` it has a noisy half."""
        names = list(FAMILIES)
        name = self.rng.choices(names, [self.weight(task, joint) for task in names])[0]
        size = self.size(name, progress)
        task = draw(self.rng, name, "train", size)
        prompt = self.tokenizer.encode(render(task.messages), add_special_tokens=False).ids
        answer = [*self.tokenizer.encode(task.answer, add_special_tokens=False).ids, EOS_ID]
        row = clean_row(prompt, answer)
        clean = len(row.ids)
        if joint:
            draw_noise(row, len(prompt), answer, self.rng)
        return Sample(name, size, row, len(row.ids) - clean)

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
