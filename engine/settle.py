"""From decided tokens to events: what a sequence's reader is sent at a border and at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from engine.events import Event, Finished
from engine.plan import PlanEntry
from engine.sequence import Sequence

if TYPE_CHECKING:
    from engine.stats import Counters


def settle_all(sequences: Iterable[Sequence], now: float, counters: Counters) -> list[tuple[Sequence, Event]]:
    """What is to be sent of the sequences that have come to a border or to their end. `now`: engine clock."""
    events: list[tuple[Sequence, Event]] = []
    for sequence in sequences:
        if sequence.canvas is None and sequence.has_pending:
            events.extend(settle(sequence, now, counters))
    return events


def settle(sequence: Sequence, now: float, counters: Counters) -> list[tuple[Sequence, Event]]:
    """Moves decided tokens to the output of a sequence at a border or at its end, and sends what is due."""
    ended = sequence.finish_reason is not None
    # Diffusion shows pending with its block; AR and self-speculation show it at once.
    decided = sequence.output_tokens - (1 if sequence.rung.is_diffusion and not ended else 0)
    if decided > sequence.settled:
        start = sequence.prompt_tokens
        fresh = sequence.tokens[start + sequence.settled : start + decided]
        counters.generated_tokens[sequence.rung.decoding.value] += len(fresh)
        sequence.settled = decided
        kept = sequence.out.push(fresh)
        if kept is not None:
            del sequence.tokens[start + kept :]
            sequence.settled = kept
            sequence.finish_reason = "stop"
    if sequence.finish_reason is not None:
        return finish(sequence, now)
    if sequence.out.due(now, whole_blocks=sequence.rung.is_diffusion):
        _note_first_text(sequence, now)
        return [(sequence, sequence.out.take(now, sequence.report.spent))]
    return []


def finish(sequence: Sequence, now: float) -> list[tuple[Sequence, Event]]:
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


def _note_first_text(sequence: Sequence, now: float) -> None:
    if sequence.report.ttft_ms is None:
        sequence.report.ttft_ms = (now - sequence.arrival_s) * 1e3
