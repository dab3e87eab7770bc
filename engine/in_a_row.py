"""Forwards in a row: which of them are known before their tokens are, so that the host waits once, for all of them.

Draft steps of the same canvases are the same batch with other tokens. What follows drafts that AR verifies is the look
at them; what follows a look of AR is the look at the token that it chose. Those are batches of their own, which the
host lays out while the device is busy; their tokens are taken from where they were chosen. Whatever an answer turns out
not to need, because it ended before, was run in vain.

Whether another step follows may depend on tokens (a threshold): then the host sees what the last one has committed. If
all canvases have masks left, the next one is the same batch once more, and the device waits for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.decoding.canvas import draft_on, drafts_end, steps_in_a_row, steps_without_host, tokens_in_a_row
from engine.postprocess import Work
from engine.segments import following_look, look_segment
from engine.sequence import Phase

if TYPE_CHECKING:
    from torch import Tensor

    from engine.batch import ForwardBatch
    from engine.decoding.choice import Choice
    from engine.executor import Executor
    from engine.postprocess import Postprocessor


@dataclass(frozen=True, slots=True)
class Row:
    """Forwards in a row.

    Attributes:
        steps: of the batch as it is laid out. looks: those that follow, the parts of each; after drafts one, at them.
        most: steps that it may come to, where the host sees after the first ones that all canvases are still drafting.
    """

    steps: int = 1
    looks: list[list[Work]] = field(default_factory=list)
    most: int = 1

    @property
    def forwards(self) -> int:
        return self.steps + len(self.looks)

    @property
    def several(self) -> bool:
        """Whether it is, or may come to, more than one forward."""
        return self.forwards > 1 or self.most > 1


class Ran(NamedTuple):
    """Steps of the batch as it was laid out, and how often the host waited for them and the looks that followed."""

    steps: int
    waits: int


def row_of(work: list[Work], most: float) -> Row:
    """The forwards that follow from the next one, whatever its tokens are; at most `most`, and at least one."""
    phase = work[0].phase
    if phase is Phase.PREFILL or any(item.phase is not phase for item in work):
        return Row()
    sequences = [item.sequence for item in work]
    if phase is Phase.LOOK:
        ahead = range(1, int(min(tokens_in_a_row(sequences), most)))
        return Row(1, [[Work(one.sequence, following_look(one, count), Phase.LOOK) for one in work] for count in ahead])
    steps = max(1, int(min(steps_in_a_row(sequences), most)))
    if steps + 1 > most or not drafts_end(sequences, steps):
        return Row(steps, most=max(steps, int(min(steps_without_host(sequences), most))))
    return Row(steps, [[Work(one, look_segment(one), Phase.LOOK) for one in sequences]], steps)


def run_row(
    row: Row,
    work: list[Work],
    batch: ForwardBatch,
    executor: Executor,
    postprocessor: Postprocessor,
    goes_on: Callable[[int], bool],
) -> Ran:
    """Runs a row of forwards, of which `batch` is the first, and advances the sequences of `work` by them.

    `goes_on`: asked after the first steps, and after those that followed, whether so many more may follow.
    """
    if work[0].phase is not Phase.DRAFT:
        choices = [executor.choose(batch, lambda: postprocessor.ask(work))]
        for looks in row.looks:
            choices.append(_look(looks, executor, postprocessor, choices[-1].tokens))
        postprocessor.tokens([work, *row.looks], choices)
        return Ran(1, 1)
    sequences = [item.sequence for item in work]
    drafting = executor.denoise(batch, lambda: postprocessor.drafting(work, executor.kv.device), row.steps)
    canvases = drafting.canvases
    if row.looks:
        (looks,) = row.looks
        choice = _look(looks, executor, postprocessor, canvases.tokens())
        postprocessor.drafted(work, canvases, row.steps, looks, choice)
        return Ran(row.steps, 1)
    postprocessor.drafted(work, canvases, row.steps)
    ran, waits = row.steps, 1
    while ran < row.most and all(draft_on(one) for one in sequences):
        steps = min(steps_in_a_row(sequences), row.most - ran)
        if not goes_on(steps):
            break
        executor.denoise_on(batch, drafting, steps)
        postprocessor.drafted(work, canvases, steps)
        ran, waits = ran + steps, waits + 1
    return Ran(ran, waits)


def _look(looks: list[Work], executor: Executor, postprocessor: Postprocessor, tokens: Tensor) -> Choice:
    return executor.look([item.segment for item in looks], lambda: postprocessor.ask(looks), tokens)
