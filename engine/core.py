"""The engine's loop body: schedule -> run -> postprocess, without threads or asyncio.

`EngineCore` owns all sequences and pages. One call of `step` is one forward.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from engine.decoding.canvas import may_change, open_canvas
from engine.events import Event
from engine.in_a_row import Ran, Row, row_of, run_row
from engine.kv_cache import PagePool, page_key, root_key
from engine.outlook import NextBlock, Outlook, View
from engine.pace import reserve
from engine.plan import PlanEntry, Rung
from engine.postprocess import Meanwhile, Postprocessor, Work
from engine.put_off import put_off_lost
from engine.scheduler import Want, share_slots
from engine.segments import main_block_length, segment
from engine.sequence import Sequence
from engine.settle import finish, settle_all
from engine.share import Share
from engine.stats import Counters

if TYPE_CHECKING:
    from engine.batch import ForwardBatch
    from engine.config import EngineConfig
    from engine.cost_model import ForwardCostModel
    from engine.executor import Executor


PATIENCE_S = 30.0
"""Seconds after which a sequence without a deadline is given memory like one whose deadline has come."""
PATIENT_BESIDE = 16
"""Sequences without a deadline that run at a time beside some with one: their canvases fill any forward that deadlines
leave room in, and the fewer take turns, the sooner each is done."""
SHARE_OVER_S = 3.0
"""Seconds over which `timed_time` forgets: some of the arrivals of now, not the next burst alone."""
NEWEST = 0.05
"""Weight of the last step in `step_s`."""
DEADLINES_EXPECTED_S = 30.0
"""For so long after a sequence with a deadline the next one is expected."""
LONGEST_BASES = 12.0
"""Meanwhile what has no deadline, or a loose one, makes no forward longer than so many of its bases, and forwards are
run in a row for no longer: a twelfth of the time is the price of a short wait. Where hardly any base was found, than so
many blocks take."""


def _no() -> bool:
    """Where nobody comes but by `add`."""
    return False


class EngineCore:
    """All sequences of one engine, and the step that advances them, by one forward or a few in a row.

    Attributes:
        view: what the loop saw before its last forward or row of them; None where it did not look, or nobody is left.
        ends_s: when the forward under way is predicted to end, engine clock.
        step_s: for how long it waited of late for what it had begun.
        timed_time: how much of the time goes to sequences with a deadline.
        meanwhile: what a device need not wait for; also done in a step without a forward.
        called: whether somebody has come, or gone, whom the loop has not heard of.
    """

    def __init__(
        self,
        executor: Executor,
        pool: PagePool,
        cost_model: ForwardCostModel,
        config: EngineConfig,
        mask_token_id: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.executor = executor
        self.pool = pool
        self.cost_model = cost_model
        self.config = config
        self.mask_token_id = mask_token_id
        self.clock = clock
        self.outlook = Outlook(cost_model, config.prefill_chunk)
        self.counters = Counters()
        self.meanwhile = Meanwhile()
        self.postprocessor = Postprocessor(mask_token_id, self.counters, self.outlook.meter, self.meanwhile)
        self.called: Callable[[], bool] = _no
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.view: View | None = None
        self.ends_s = -inf
        self.step_s = 0.0
        self.timed_time = Share(SHARE_OVER_S)
        self._last_deadline_s = -inf
        self._came = False  # whether somebody waits who has not been put in order

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def reserve(self) -> float:
        """Of the time of who comes now (`engine/pace.py`)."""
        return reserve(self.timed_time.now(self.clock()))

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; it is admitted when there are pages for its prompt."""
        sequence.come_in(self.reserve)
        self.waiting.append(sequence)
        self._came = True

    def cancel(self, sequence: Sequence) -> None:
        """Forgets a sequence and frees its pages at once; nothing more is sent for it."""
        if sequence.cancelled or sequence.finish_reason is not None:
            return
        sequence.cancelled = True
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.counters.finished["cancelled"] += 1

    def step(self) -> list[tuple[Sequence, Event]]:
        """One forward, or a few in a row, and what came of it."""
        begun = self.clock()
        events = self._cut_late(begun)
        self._admit()
        self.view = view = self._look_ahead(begun)
        self._open_borders(view)
        work = self._schedule(view, begun)
        if work:
            batch = self.executor.batch([item.segment for item in work])
            started = self.clock()
            forward_s = self.cost_model.cost.seconds(batch.query_tokens, batch.context_tokens, len(work))
            row = self._row(work, self._longest_s(begun) / max(forward_s, 1e-9))
            self.ends_s = begun + forward_s * row.forwards
            ran = self._advance(work, batch, row, forward_s)
            ended = self.clock()
            forwards = ran.steps + len(row.looks)
            per_slot_s = (ended - started) / (batch.query_tokens * forwards)
            self._account(work, per_slot_s, ran.steps)
            for looks in row.looks:
                self._account(looks, per_slot_s, 1)
            events += settle_all((item.sequence for item in work), ended, self.counters)
            for item in work:
                self._share_pages(item.sequence)
                if item.sequence.finish_reason is not None:
                    self._leave(item.sequence)
                    self._count_end(item.sequence, ended)
            step_s = self.clock() - begun
            self.counters.busy_s += step_s
            wait_s = step_s / ran.waits
            self.step_s += (wait_s - self.step_s) * (NEWEST if self.step_s else 1.0)
            # Until the next one has been laid out, which is when it is known better.
            self.ends_s = begun + step_s + self.step_s
            timed = sum(len(item.segment.tokens) for item in work if item.sequence.timed)
            self.timed_time.add(begun + step_s, step_s * timed / batch.query_tokens)
            size = batch.query_tokens, batch.context_tokens, len(work)
            length = main_block_length(work, batch.query_tokens)
            self.meanwhile.learn = partial(self.cost_model.observe, *size, step_s / forwards, length)
            if self.executor.keeps_logits or self.idle:
                self.meanwhile.learned()
        else:
            self.meanwhile()
        if self.idle:
            self.view, self.ends_s = None, -inf
        return events

    def _goes_on(self, forward_s: float, forwards: int) -> bool:
        """Whether a row may go on by so many forwards: nobody came meanwhile, and nothing else is wanted."""
        if self.called():
            return False
        self.ends_s = self.clock() + forward_s * forwards
        return True

    def _row(self, work: list[Work], most: float) -> Row:
        """What is run without the host between its forwards, at most so many of them.

        Nobody may be waiting for a place in them.
        """
        executor = self.executor
        if executor.keeps_logits or self.postprocessor.observer is not None:
            return Row()
        if self.waiting or len(work) < len(self.running):
            return Row()
        row = row_of(work, most)
        return row if self._found_pages(row) else Row()

    def _found_pages(self, row: Row) -> bool:
        """Gives the sequences pages for the looks that follow, where there are some for all of them."""
        last = row.looks[-1] if row.looks else []
        missing = [max(0, self._pages_for(item.segment.end) - len(item.sequence.pages)) for item in last]
        pages = self.pool.allocate(sum(missing))
        if pages is None:
            return False
        for item, count in zip(last, missing, strict=True):
            item.sequence.pages.extend(pages.pop() for _ in range(count))
        return True

    def _advance(self, work: list[Work], batch: ForwardBatch, row: Row, forward_s: float) -> Ran:
        """Runs the forward, or the row of them, and waits for what comes of it."""
        executor, postprocessor = self.executor, self.postprocessor
        if row.several:
            return run_row(row, work, batch, executor, postprocessor, partial(self._goes_on, forward_s))
        if executor.keeps_logits:
            postprocessor.advance(work, executor.run(batch))
        else:
            postprocessor.advance(work, executor.choose(batch, lambda: postprocessor.ask(work)))
        return Ran(1, 1)

    def _cut_late(self, now: float) -> list[tuple[Sequence, Event]]:
        """Ends sequences whose deadline passed and that asked to be cut there (`on_deadline: cut`)."""
        events: list[tuple[Sequence, Event]] = []
        for sequence in [*self.running, *self.waiting]:
            if not sequence.cut or sequence.due_s is None or now < sequence.due_s:
                continue
            del sequence.tokens[sequence.prompt_tokens + sequence.settled :]
            sequence.finish_reason = "length"
            sequence.report.cut_at_deadline = True
            events += finish(sequence, now)
            if sequence in self.running:
                self._leave(sequence)
            else:
                self.waiting.remove(sequence)
            self.counters.finished["cut"] += 1
            self.outlook.ended(False if sequence.plan.promised else None)
        return events

    def _admit(self) -> None:
        """Takes waiting sequences in, the most urgent first, while there are places, and pages for what they read.

        Beside deadlines only `PATIENT_BESIDE` of those without one run at a time: the rest wait for them to end rather
        than share their turns, and cost nothing meanwhile.
        """
        if self._came:
            self.waiting.sort(key=lambda sequence: sequence.urgency(PATIENCE_S))
            self._came = False
        beside_deadlines = any(sequence.timed for sequence in (*self.running, *self.waiting))
        patient = sum(not sequence.timed for sequence in self.running)
        for sequence in self.waiting[:]:
            if len(self.running) >= self.config.max_sequences:
                return
            if not sequence.timed:
                if beside_deadlines and patient >= PATIENT_BESIDE:
                    continue
                patient += 1
            if not self._take_in(sequence):
                return

    def _take_in(self, sequence: Sequence) -> bool:
        """Takes a waiting sequence in if there are pages for what it reads."""
        pages, keys = self.pool.match(sequence.tokens[: sequence.prefill_target], sequence.cache_salt)
        needed = self._pages_for(sequence.prefill_target + sequence.rung.block_length) - len(pages)
        if needed > self.pool.available and self.running:
            self.pool.release(pages)
            return False
        self.waiting.remove(sequence)
        sequence.pages, sequence.page_keys = array("q", pages), keys
        sequence.cached = len(pages) * self.pool.page_size
        self.counters.prefix_hit_tokens += sequence.cached
        if sequence.last_served < 0:
            sequence.report.cached_prompt_tokens = sequence.cached
            self.counters.prompt_tokens += sequence.prompt_tokens
            # As if it had taken part in the last forward: it has not waited yet.
            sequence.last_served = max(self.counters.forwards - 1, 0)
        self.running.append(sequence)
        return True

    def _look_ahead(self, now: float) -> View | None:
        """What deadlines and open plans ask for, None where there are neither, or nobody is at a border.

        Deadlines that cannot be kept are put off, so that they hold up nobody.
        """
        present = [*self.running, *(sequence for sequence in self.waiting if sequence.timed)]
        if not any(sequence.timed for sequence in present) and not any(
            sequence.at_border and not sequence.pinned and may_change(sequence) for sequence in self.running
        ):
            return None
        return put_off_lost(partial(self.outlook.view, present, now), now)

    def _open_borders(self, view: View | None) -> None:
        """Chooses rungs for sequences at a border and opens their canvases."""
        borders = [sequence for sequence in self.running if sequence.at_border]
        free = [sequence for sequence in borders if not sequence.pinned and may_change(sequence)]
        choices = {} if view is None else self.outlook.next_blocks(free, view)
        for sequence in borders:
            plan = sequence.plan
            begun = sequence.output_tokens - 1
            kept = plan.rung_at(begun) if plan.schedule else sequence.rung
            rung, fitted = choices.get(sequence) or NextBlock(kept)
            self._use_rung(sequence, rung)
            open_canvas(sequence, self.mask_token_id)
            sequence.open_canvas.fitted = fitted

    def _use_rung(self, sequence: Sequence, rung: Rung) -> None:
        entries = sequence.report.plan
        if not entries or entries[-1].rung.policy() != rung.policy():
            # Where the block starts: unlike what is settled, it grows with every block.
            entries.append(PlanEntry(sequence.output_tokens - 1, rung))
            self.counters.rung_changes += len(entries) > 1
        sequence.rung = rung

    def _schedule(self, view: View | None, now: float) -> list[Work]:
        """Grants slots and finds pages for them, making room by preemption where it must."""
        forwards = self.counters.forwards
        paces = self.outlook.paces(view) if view is not None and view.timed else {}
        wants = [
            Want(
                index,
                *sequence.wanted(),
                forwards - sequence.last_served - 1,
                sequence.arrival_s,
                sequence.cached,
                paces.get(sequence, inf),
                sequence.plan.weight,
            )
            for index, sequence in enumerate(self.running)
        ]
        order = list(self.running)
        granted: set[int] = set()
        work: list[Work] = []
        if paces:
            self._last_deadline_s = now
        cost, config, hold = self.cost_model.cost, self.config, self.outlook.hold
        longest_s = self._longest_s(now)
        grants = share_slots(wants, cost, config.max_forward_tokens, config.prefill_chunk, longest_s, hold)
        for grant in grants:
            sequence = order[grant.name]
            if sequence not in self.running:
                continue
            granted.add(id(sequence))
            if not self._ensure_pages(sequence, sequence.cached + grant.tokens, granted):
                granted.discard(id(sequence))
                continue
            if sequence.first_served_s is None:
                sequence.first_served_s = now
                sequence.report.queue_ms = (now - sequence.arrival_s) * 1e3
            work.append(Work(sequence, segment(sequence, grant.tokens), sequence.phase))
        return work

    def _longest_s(self, now: float) -> float:
        """For how long the next one with a deadline may have to wait for what it finds under way, seconds."""
        if now - self._last_deadline_s >= DEADLINES_EXPECTED_S:
            return inf
        cost = self.cost_model.cost
        return LONGEST_BASES * max(cost.base_s, cost.own_s(self.pool.page_size, 0))

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.page_size)

    def _ensure_pages(self, sequence: Sequence, end: int, granted: set[int]) -> bool:
        """Gives the sequence pages up to token `end`, taking them from less urgent sequences if need be."""
        missing = self._pages_for(end) - len(sequence.pages)
        while missing > 0:
            pages = self.pool.allocate(missing)
            if pages is not None:
                sequence.pages.extend(pages)
                return True
            mine = sequence.urgency(PATIENCE_S)
            others = [
                other
                for other in self.running
                if other.urgency(PATIENCE_S) > mine and id(other) not in granted and other.pages
            ]
            if not others:
                return False
            self._preempt(max(others, key=lambda other: other.urgency(PATIENCE_S)))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Drops a sequence's K/V; it waits, and reads its text again when there is room."""
        self.running.remove(sequence)
        self.pool.release(sequence.drop_cache())
        sequence.report.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.append(sequence)
        self._came = True

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.drop_cache())

    def _count_end(self, sequence: Sequence, now: float) -> None:
        self.counters.finished[sequence.finish_reason or "cancelled"] += 1
        due_s = sequence.due_s if sequence.plan.promised else None
        # What nothing stops has the length that was asked for, which says nothing of answers.
        if sequence.limits.stop_ids:
            self.outlook.lengths.observe(sequence.output_tokens, sequence.limits.max_tokens)
        self.outlook.ended(None if due_s is None else now <= due_s)

    def _share_pages(self, sequence: Sequence) -> None:
        """Makes pages findable whose every token is committed."""
        size = self.pool.page_size
        # A block that ended the sequence may have K/V beyond the text that was kept.
        committed = min(sequence.cached, len(sequence.tokens))
        for index in range(len(sequence.page_keys), committed // size):
            parent = sequence.page_keys[-1] if sequence.page_keys else root_key(sequence.cache_salt)
            key = page_key(parent, sequence.tokens[index * size : (index + 1) * size])
            sequence.page_keys.append(key)
            self.pool.share(sequence.pages[index], key)

    def _account(self, work: list[Work], per_slot_s: float, steps: int) -> None:
        """Counts so many forwards of `work`, none where that is empty; `per_slot_s`: seconds a query token of one."""
        if not work:
            return
        counters = self.counters
        counters.forwards += steps
        for item in work:
            slots = len(item.segment.tokens) * steps
            counters.forward_s += per_slot_s * slots
            item.sequence.last_served = counters.forwards - 1
            item.sequence.report.forwards += steps
            item.sequence.report.accelerator_ms += per_slot_s * slots * 1e3
            counters.slots[item.phase.value] += slots
