"""Forwards in a row: which of them are known before their tokens are, so that the host waits once, for all of them.

Draft steps of the same canvases are the same batch with other tokens. What follows drafts that AR verifies is the look
at them; what follows a look of AR is the look at the token that it chose. Those are batches of their own, which the
host lays out while the device is busy; their tokens are taken from where they were chosen. Whatever an answer turns out
not to need, because it ended before, was run in vain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.decoding.canvas import drafts_end, open_canvas, steps_in_a_row, tokens_in_a_row
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
    """

    steps: int = 1
    looks: list[list[Work]] = field(default_factory=list)

    @property
    def forwards(self) -> int:
        return self.steps + len(self.looks)


def row_of(work: list[Work], most: float) -> Row:
    """The forwards that follow from the next one, whatever its tokens are; at most `most`, and at least one."""
    sequences = [item.sequence for item in work]
    tokens = int(min(tokens_in_a_row(sequences), most))
    if tokens > 1:
        ahead = range(1, tokens)
        return Row(1, [[Work(one.sequence, following_look(one, count), Phase.LOOK) for one in work] for count in ahead])
    steps = max(1, int(min(steps_in_a_row(sequences), most)))
    if steps + 1 > most or not drafts_end(sequences, steps):
        return Row(steps)
    return Row(steps, [[Work(one, look_segment(one), Phase.LOOK) for one in sequences]])


def run_row(row: Row, work: list[Work], batch: ForwardBatch, executor: Executor, postprocessor: Postprocessor) -> None:
    """Runs a row of several forwards, of which `batch` is the first, and advances the sequences of `work` by them."""
    if work[0].phase is Phase.DRAFT:
        _drafts(row, work, batch, executor, postprocessor)
    else:
        _tokens(row, work, batch, executor, postprocessor)


def _drafts(row: Row, work: list[Work], batch: ForwardBatch, executor: Executor, postprocessor: Postprocessor) -> None:
    canvases = postprocessor.canvases(work, executor.kv.device)
    executor.denoise(batch, postprocessor.ask(work), canvases, row.steps)
    choices = [_look(looks, executor, postprocessor, canvases.tokens()) for looks in row.looks]
    postprocessor.put_back(work, canvases, row.steps)
    for looks, choice in zip(row.looks, choices, strict=True):
        for item in looks:
            item.segment.tokens = item.sequence.open_canvas.tokens
        postprocessor.advance(looks, choice)


def _tokens(row: Row, work: list[Work], batch: ForwardBatch, executor: Executor, postprocessor: Postprocessor) -> None:
    choices = [executor.choose(batch, lambda: postprocessor.ask(work))]
    for looks in row.looks:
        choices.append(_look(looks, executor, postprocessor, choices[-1].tokens))
    postprocessor.advance(work, choices[0])
    for looks, choice in zip(row.looks, choices[1:], strict=True):
        for item in looks:
            if item.sequence.finish_reason is None:
                open_canvas(item.sequence, postprocessor.mask_token_id)
        postprocessor.advance(looks, choice)


def _look(looks: list[Work], executor: Executor, postprocessor: Postprocessor, tokens: Tensor) -> Choice:
    return executor.look([item.segment for item in looks], lambda: postprocessor.ask(looks), tokens)
