"""From logits to sequences: choose tokens, unmask canvases, audit finished blocks, settle, send.

The last third of a step. Everything that changes a sequence's tokens is reached from `advance` and `put_back`, which
wait for the device; `settle_all` sends what has come of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.batch import Segment
from engine.decoding.audit import kept_by_kernel, kept_tokens
from engine.decoding.border import append_tokens, cut_at_limits, keep_within_thinking, set_pending
from engine.decoding.canvas import ending_length, text_prefix
from engine.decoding.choice import Choice, RowBlock, choose
from engine.decoding.head import Asked, ask
from engine.decoding.unmask import DeviceCanvases, Draft, unmask_canvases
from engine.events import Event, Finished
from engine.noise import Stage
from engine.plan import Audit, PlanEntry
from engine.sequence import Canvas, Phase, Sequence

if TYPE_CHECKING:
    from engine.decoding.rung_choice import TokensPerForward
    from engine.stats import Counters

Observer = Callable[[str, str, list[int | None]], None]
"""Called with (sequence id, "draft" | "look", canvas with None for masks | tokens that were kept)."""


@dataclass(slots=True)
class Work:
    """One sequence's part of the forward that just ran, and what it was."""

    sequence: Sequence
    segment: Segment
    phase: Phase


def _nothing() -> None:
    """Where nobody has anything to do meanwhile."""


class Postprocessor:
    """Applies a forward's logits to its sequences.

    Attributes:
        meanwhile: called before the host waits for a device; in a step without a forward, too.
    """

    def __init__(self, mask_token_id: int, counters: Counters, meter: TokensPerForward) -> None:
        self.mask_token_id = mask_token_id
        self.counters = counters
        self.meter = meter
        self.observer: Observer | None = None
        self.meanwhile: Callable[[], None] = _nothing

    def ask(self, work: list[Work]) -> Asked:
        """What the head is asked about the forward's wanted rows where it keeps no logits."""
        return ask([_row_block(item) for item in work], self.mask_token_id)

    def canvases(self, work: list[Work], device: torch.device) -> DeviceCanvases:
        """The canvases of a forward of drafts alone, for several steps in a row; `put_back` is to follow."""
        return DeviceCanvases([_draft(item, row) for item, row in _with_rows(work)], device, self.mask_token_id)

    def put_back(self, work: list[Work], canvases: DeviceCanvases, steps: int) -> None:
        """Advances every sequence of a forward of drafts alone that was run for so many steps in a row."""
        self.meanwhile()
        canvases.put_back()
        for item in work:
            self._drafted(item.sequence, steps)

    def advance(self, work: list[Work], outcome: Tensor | Choice) -> None:
        """Advances every sequence of the forward.

        Args:
            outcome: of all wanted rows, segment after segment: logits, float32 `[wanted, vocab]`, or what the head
                chose and judged itself.
        """
        drafts: list[tuple[Work, int]] = []
        looks: list[tuple[Work, int]] = []
        for item, row in _with_rows(work):
            # One that has ended by a token that the host had not seen when this forward was begun.
            if item.sequence.finish_reason is None:
                (drafts if item.phase is Phase.DRAFT else looks).append((item, row))
        if isinstance(outcome, Choice):
            choice, logits = outcome, None
            self.meanwhile()
        else:
            choice = choose(outcome, [_row_block(item) for item in work], self.mask_token_id)
            logits = outcome
        if drafts:
            unmask_canvases([_draft(item, row) for item, row in drafts], choice, self.mask_token_id)
            for item, _ in drafts:
                self._drafted(item.sequence, 1)
        if looks:
            kept = {} if logits is not None else kept_by_kernel(_audited(looks), choice)
            choice = choice.cpu()
            tokens: list[int] = choice.tokens.tolist()
            # All rows at once: a call costs more than hundreds of them.
            scores = _log(choice.confidence) if any(item.sequence.score for item, _ in looks) else []
            for item, row in looks:
                rows = slice(row, row + len(item.segment.wanted))
                if item.phase is Phase.PREFILL:
                    self._prefill(item, tokens[rows], scores[rows])
                else:
                    self._look(item, tokens[rows], scores[rows], logits, choice, row, kept.get(row))

    def settle_all(self, work: list[Work], now: float) -> list[tuple[Sequence, Event]]:
        """What is to be sent of the sequences that have come to a border or to their end. `now`: engine clock."""
        events: list[tuple[Sequence, Event]] = []
        for item in work:
            sequence = item.sequence
            if sequence.canvas is None and sequence.has_pending:
                events.extend(self.settle(sequence, now))
        return events

    def settle(self, sequence: Sequence, now: float) -> list[tuple[Sequence, Event]]:
        """Moves decided tokens to the output of a sequence at a border or at its end, and sends what is due."""
        ended = sequence.finish_reason is not None
        # Diffusion shows pending with its block; AR and self-speculation show it at once.
        decided = sequence.output_tokens - (1 if sequence.rung.is_diffusion and not ended else 0)
        if decided > sequence.settled:
            start = sequence.prompt_tokens
            fresh = sequence.tokens[start + sequence.settled : start + decided]
            self.counters.generated_tokens[sequence.rung.decoding.value] += len(fresh)
            sequence.settled = decided
            kept = sequence.out.push(fresh)
            if kept is not None:
                del sequence.tokens[start + kept :]
                sequence.settled = kept
                sequence.finish_reason = "stop"
        if sequence.finish_reason is not None:
            return self.finish(sequence, now)
        if sequence.out.due(now, whole_blocks=sequence.rung.is_diffusion):
            _note_first_text(sequence, now)
            return [(sequence, sequence.out.take(now, sequence.report.spent))]
        return []

    def finish(self, sequence: Sequence, now: float) -> list[tuple[Sequence, Event]]:
        """The last events of a sequence whose `finish_reason` is set."""
        if sequence.finish_reason is None:
            raise RuntimeError(f"sequence {sequence.id} has no finish reason")
        sequence.out.finish()
        events: list[tuple[Sequence, Event]] = []
        if sequence.out.has_unsent:
            _note_first_text(sequence, now)
            events.append((sequence, sequence.out.take(now, sequence.report.spent)))
        report = sequence.report
        report.completion_tokens = sequence.settled
        report.latency_ms = (now - sequence.arrival_s) * 1e3
        if not report.plan:
            # It ended before its first border: by its first token, or by its deadline.
            report.plan.append(PlanEntry(0, sequence.rung))
        # Tokens that a limit or a stop string cut off are no part of the answer.
        audited = [value for offset, value in sequence.logprobs if offset < sequence.settled]
        if audited:
            report.audit_logprob = sum(audited) / len(audited)
        events.append((sequence, Finished(sequence.finish_reason, report)))
        return events

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


def _with_rows(work: list[Work]) -> list[tuple[Work, int]]:
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


def _audited(looks: list[tuple[Work, int]]) -> list[tuple[list[int], Audit, int]]:
    """Canvas tokens, audit and first row of the looks that judge a draft."""
    return [
        (item.segment.tokens, item.sequence.rung.audit, row)
        for item, row in looks
        if item.phase is Phase.LOOK and len(item.segment.wanted) == len(item.segment.tokens) > 1
    ]


def _log(probabilities: Tensor) -> list[float]:
    """Natural logarithms, finite where a probability is too small for float32."""
    logs: list[float] = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log().tolist()
    return logs


def _note_first_text(sequence: Sequence, now: float) -> None:
    if sequence.report.ttft_ms is None:
        sequence.report.ttft_ms = (now - sequence.arrival_s) * 1e3
