"""From logits to sequences: choose tokens, unmask canvases, audit finished blocks.

Everything that a forward changes of a sequence's tokens is reached from `advance`, and for forwards in a row from
`drafted` and `tokens`, which wait for the device once; `engine/settle.py` sends what has come of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.batch import Segment
from engine.decoding.audit import Audited, kept_on_device, kept_tokens
from engine.decoding.border import append_tokens, cut_at_limits, keep_within_thinking, set_pending
from engine.decoding.canvas import ending_length, open_canvas, text_prefix
from engine.decoding.choice import Choice, RowBlock, choose
from engine.decoding.head import Asked, ask
from engine.decoding.unmask import DeviceCanvases, Draft, Drafting, unmask_canvases
from engine.noise import Stage
from engine.packing import fetched_together
from engine.sequence import Canvas, Phase, Sequence

if TYPE_CHECKING:
    from engine.decoding.rung_choice import TokensPerForward
    from engine.stats import Counters

Part = tuple["Work", int]
"""A part of a forward, and the first of its rows among the wanted ones."""
Observer = Callable[[str, str, list[int | None]], None]
"""Called with (sequence id, "draft" | "look", canvas with None for masks | tokens that were kept)."""


@dataclass(slots=True)
class Work:
    """One sequence's part of the forward that just ran, and what it was."""

    sequence: Sequence
    segment: Segment
    phase: Phase


def _nothing() -> None:
    """Where nobody wants anything to be done."""


@dataclass(slots=True)
class Meanwhile:
    """What a device need not wait for: it is done while the device runs a forward.

    Attributes:
        learn: from the last step, once. deliver: hands over what steps have returned.
    """

    learn: Callable[[], None] = _nothing
    deliver: Callable[[], None] = _nothing

    def __call__(self) -> None:
        """Does all of it."""
        self.learned()
        self.deliver()

    def learned(self) -> None:
        """Learns what is still to be learned."""
        learn, self.learn = self.learn, _nothing
        learn()


class Postprocessor:
    """Applies a forward's logits to its sequences.

    Attributes:
        meanwhile: called before the host waits for a device.
    """

    def __init__(self, mask_token_id: int, counters: Counters, meter: TokensPerForward, meanwhile: Meanwhile) -> None:
        self.mask_token_id = mask_token_id
        self.counters = counters
        self.meter = meter
        self.observer: Observer | None = None
        self.meanwhile = meanwhile

    def ask(self, work: list[Work]) -> Asked:
        """What the head is asked about the forward's wanted rows where it keeps no logits."""
        return ask([_row_block(item) for item in work], self.mask_token_id)

    def drafting(self, work: list[Work], device: torch.device) -> Drafting[DeviceCanvases]:
        """What several steps in a row of a forward of drafts alone need, what is asked on the CPU; `drafted` is to
        follow."""
        canvases = DeviceCanvases([_draft(item, row) for item, row in _with_rows(work)], device, self.mask_token_id)
        return Drafting(canvases, self.ask(work))

    def advance(self, work: list[Work], outcome: Tensor | Choice) -> None:
        """Advances every sequence of the forward.

        Args:
            outcome: of all wanted rows, segment after segment: logits, float32 `[wanted, vocab]`, or what the head
                chose and judged itself.
        """
        rows = _with_rows(work)
        drafts = [(item, row) for item, row in rows if item.phase is Phase.DRAFT]
        looks = [(item, row) for item, row in rows if item.phase is not Phase.DRAFT]
        if isinstance(outcome, Choice):
            self._advance_from_device(drafts, looks, outcome)
            return
        choice = choose(outcome, [_row_block(item) for item in work], self.mask_token_id)
        if drafts:
            unmask_canvases([_draft(item, row) for item, row in drafts], choice, self.mask_token_id)
            for item, _ in drafts:
                self._drafted(item.sequence, 1)
        if looks:
            self._looked(looks, choice, {}, outcome)

    def _advance_from_device(self, drafts: list[Part], looks: list[Part], choice: Choice) -> None:
        """Advances the sequences of a forward whose tokens the device has chosen, for which the host waits once."""
        canvases: DeviceCanvases | None = None
        if drafts:
            mine = [_draft(item, row) for item, row in drafts]
            canvases = DeviceCanvases(mine, choice.tokens.device, self.mask_token_id)
            canvases.commit(choice)
        audited = _audited(looks)
        state = [] if canvases is None else canvases.state()
        kept = [kept_on_device(audited, choice)] if audited else []
        self.meanwhile()
        state, chosen, kept = fetched_together(state, choice.of_looks() if looks else [], kept)
        if canvases is not None:
            canvases.put_back(state)
            for item, _ in drafts:
                self._drafted(item.sequence, 1)
        if looks:
            self._looked(looks, Choice(*chosen), _kept_of(audited, kept))

    def drafted(
        self,
        work: list[Work],
        canvases: DeviceCanvases,
        steps: int,
        looks: Seq[Work] = (),
        choice: Choice | None = None,
    ) -> None:
        """Advances the sequences of a forward of drafts alone, which was run for so many steps in a row; for which the
        host waits once.

        Args:
            looks, choice: at the drafts of all of them, and what came of those; where looks followed.
        """
        rows = _with_rows(looks)
        audited = _audited(rows)
        kept = [] if choice is None or not audited else [kept_on_device(audited, choice, canvases.ids)]
        self.meanwhile()
        state, chosen, kept = fetched_together(canvases.state(), [] if choice is None else choice.of_looks(), kept)
        canvases.put_back(state)
        for item in work:
            self._drafted(item.sequence, steps)
        if choice is not None:
            for item in looks:
                item.segment.tokens = item.sequence.open_canvas.tokens
            self._looked(rows, Choice(*chosen), _kept_of(audited, kept))

    def tokens(self, looks: list[list[Work]], choices: list[Choice]) -> None:
        """Advances sequences of AR by forwards in a row, of each its looks and its choice; for which the host waits
        once."""
        self.meanwhile()
        for some, chosen in zip(looks, fetched_together(*(choice.of_looks() for choice in choices)), strict=True):
            for item in some:
                if item.sequence.canvas is None and item.sequence.finish_reason is None:
                    open_canvas(item.sequence, self.mask_token_id)
            self._looked(_with_rows(some), Choice(*chosen), {})

    def _looked(self, looks: list[Part], choice: Choice, kept: dict[int, int], logits: Tensor | None = None) -> None:
        """What follows from looks, of which the host knows the choice: new text is read, or canvases are committed.

        Args:
            kept: by first row, tokens that passed an audit, where a kernel has judged them.
        """
        tokens: list[int] = choice.tokens.tolist()
        # All rows at once: a call costs more than hundreds of them.
        scores = _log(choice.confidence) if any(item.sequence.score for item, _ in looks) else []
        for item, row in looks:
            # Ended by a token that the host had not seen when this forward was begun.
            if item.sequence.finish_reason is not None:
                continue
            rows = slice(row, row + len(item.segment.wanted))
            if item.phase is Phase.PREFILL:
                self._prefill(item, tokens[rows], scores[rows])
            else:
                self._look(item, tokens[rows], scores[rows], logits, choice, row, kept.get(row))

    def _prefill(self, item: Work, picks: list[int], scores: list[float]) -> None:
        sequence = item.sequence
        sequence.cached = item.segment.end
        if picks:
            set_pending(sequence, picks[0])
            if sequence.score and sequence.tokens[-1] == picks[0]:
                sequence.logprobs.append((0, scores[0]))
            cut_at_limits(sequence, 0)

    def _drafted(self, sequence: Sequence, steps: int) -> None:
        """What follows from a sequence's draft steps, whose tokens are in its canvas."""
        canvas = sequence.open_canvas
        canvas.step += steps
        sequence.block_forwards += steps
        if sequence.rung.is_diffusion:
            sequence.report.denoise_steps += steps
            self.counters.denoise_steps += steps
        else:
            sequence.report.draft_steps += steps
            self.counters.draft_steps += steps
        if self.observer is not None:
            shown = [None if hidden else token for token, hidden in zip(canvas.tokens, canvas.masked, strict=True)]
            self.observer(sequence.id, "draft", shown)
        if sequence.rung.is_diffusion:
            self._end_inside(sequence, canvas)

    def _end_inside(self, sequence: Sequence, canvas: Canvas) -> None:
        """Closes a canvas in which the sequence ends: nothing after that point is wanted, and no K/V either."""
        end = ending_length(sequence, canvas)
        if end is None and sequence.out.stop_strings:
            # Pending, the canvas's first token, is settled already after AR and self-speculation.
            first = 1 if sequence.settled == sequence.output_tokens else 0
            reached = sequence.out.tokens_to_stop(text_prefix(canvas)[first:])
            end = None if reached is None else first + reached
        if end is None:
            return
        canvas.tokens = canvas.tokens[:end]
        canvas.masked = canvas.masked[:end]
        canvas.masks_left = 0
        if sequence.rung.audit == "off" and keep_within_thinking(sequence, canvas.tokens[1:]) == end - 1:
            first_new = sequence.output_tokens
            append_tokens(sequence, canvas.tokens[1:])
            sequence.canvas = None
            sequence.report.blocks += 1
            sequence.block_forwards = 0
            cut_at_limits(sequence, first_new)
            # No token follows a stop string, so its last one is decided too and not pending.
            sequence.finish_reason = sequence.finish_reason or "stop"

    def _look(
        self,
        item: Work,
        picks: list[int],
        scores: list[float],
        logits: Tensor | None,
        choice: Choice,
        row: int,
        kept: int | None,
    ) -> None:
        """Commits a canvas.

        Args:
            picks, scores: token and log p of each wanted row, the first of which is `row` of the forward's.
            kept: leading tokens that pass the audit, where a kernel has judged them already.
        """
        sequence, canvas, rung = item.sequence, item.sequence.open_canvas, item.sequence.rung
        length = len(canvas.tokens)
        ratios: list[float] | None = None
        logprobs: list[float] | None = None
        judged = len(picks) == length and length > 1 and (rung.tolerance is not None or rung.audit == "score")
        if judged and choice.given_logprob is not None:
            logprobs = choice.given_logprob[row : row + length - 1].tolist()
        elif judged and logits is not None:
            rows = logits[row : row + length - 1]
            chosen = rows.gather(1, torch.tensor(canvas.tokens[1:])[:, None])[:, 0]
            logprobs = (chosen - rows.logsumexp(-1)).tolist()
            if rung.tolerance is not None:
                candidates = rows.clone()
                candidates[:, self.mask_token_id] = -math.inf
                ratios = (chosen - candidates.max(-1).values).tolist()
        if kept is None:
            kept = length if len(picks) < length else kept_tokens(canvas.tokens, picks, ratios, rung.audit)
        fitting = 1 + keep_within_thinking(sequence, canvas.tokens[1:kept])
        kept = min(kept, fitting)
        pick = picks[kept - 1] if len(picks) == length else picks[-1]
        first_new = sequence.output_tokens
        append_tokens(sequence, canvas.tokens[1:kept])
        sequence.cached += kept
        sequence.canvas = None
        sequence.report.blocks += 1
        if not canvas.fitted:
            self.meter.observe(rung, kept, sequence.block_forwards + 1)
        sequence.block_forwards = 0
        set_pending(sequence, pick)
        if sequence.score:
            values = scores
            if logprobs is not None:
                values[: kept - 1] = logprobs[: kept - 1]
            # Without an audit only the last row was computed: it judges the next pending token alone.
            values = values[:kept] if len(picks) == length else values
            offsets = range(sequence.output_tokens - len(values), sequence.output_tokens)
            # A forced end of thinking is not judged: the model did not choose it.
            forced = sequence.tokens[-1] != pick
            sequence.logprobs.extend(list(zip(offsets, values, strict=True))[: len(values) - forced])
        if self.observer is not None:
            self.observer(sequence.id, "look", list(sequence.tokens[-kept:]))
        cut_at_limits(sequence, first_new)


def _kept_of(audited: list[Audited], kept: list[Tensor]) -> dict[int, int]:
    """What was kept, by first row."""
    counts = kept[0].tolist() if kept else []
    return {row: count for (_, _, row), count in zip(audited, counts, strict=True)}


def _with_rows(work: Seq[Work]) -> list[Part]:
    """Each part of a forward with the first of its rows among the wanted ones."""
    ends = accumulate(len(item.segment.wanted) for item in work)
    return [(item, end - len(item.segment.wanted)) for item, end in zip(work, ends, strict=True)]


def _draft(item: Work, row: int) -> Draft:
    return item.sequence, item.sequence.open_canvas, item.segment.wanted, row


def _row_block(item: Work) -> RowBlock:
    """Where the rows of a segment choose: a draft row its own position, a causal row the one after it."""
    sequence, segment = item.sequence, item.segment
    if item.phase is Phase.DRAFT:
        stage = Stage.DENOISE if sequence.rung.is_diffusion else Stage.DRAFT
        canvas = sequence.open_canvas
        settled: list[int] = []
        if sequence.rung.remask is not None:
            settled = [-1 if canvas.masked[offset] else canvas.tokens[offset] for offset in segment.wanted]
        return RowBlock(sequence, segment.start, segment.wanted, stage, canvas.step, settled)
    # Each row of an audited canvas judges the token after it.
    audited = item.phase is Phase.LOOK and len(segment.wanted) == len(segment.tokens) > 1
    given = [*segment.tokens[1:], -1] if audited else []
    return RowBlock(sequence, segment.start + 1, segment.wanted, Stage.CAUSAL, 0, given)


def _audited(looks: list[Part]) -> list[Audited]:
    """The looks that judge a draft."""
    return [
        (item.segment.tokens, item.sequence.rung.audit, row)
        for item, row in looks
        if item.phase is Phase.LOOK and len(item.segment.wanted) == len(item.segment.tokens) > 1
    ]


def _log(probabilities: Tensor) -> list[float]:
    """Natural logarithms, finite where a probability is too small for float32."""
    logs: list[float] = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log().tolist()
    return logs
