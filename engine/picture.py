"""What other threads may ask of the engine's loop: its state in numbers, and who may come in.

The loop looks ahead before every forward, or row of them; what it saw then answers here, so that a question costs
little and the loop loses none of its time. Sequences are read while the loop runs: numbers may be as old, and are never
locked.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import inf
from typing import TYPE_CHECKING

from engine.admission import Admission, Newcomer
from engine.stats import EngineStats

if TYPE_CHECKING:
    from engine.core import EngineCore
    from engine.outlook import Backlog, Company, View
    from engine.plan import Rung
    from engine.sequence import Sequence


class Picture:
    """Of one `EngineCore`. `arriving`, everywhere: sequences on their way to the loop."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.admission = Admission(core.outlook)
        self._company: tuple[View | None, list[Sequence], Company] | None = None
        self._backlog: tuple[tuple[int, ...], Backlog] | None = None

    def rung_for(self, newcomer: Newcomer, arriving: Seq[Sequence] = ()) -> Rung | None:
        """The rung that a new request can start on so that it and all others keep their deadlines, None if on none."""
        return self.admission.rung_for(newcomer.after(self._wait_s(), self.core.reserve), self.company(arriving))

    def earliest_s(self, newcomer: Newcomer, arriving: Seq[Sequence] = ()) -> float:
        """The shortest deadline, in seconds from now, with which `rung_for` would let the request in."""
        wait_s = self._wait_s()
        return wait_s + self.admission.earliest_s(newcomer.after(wait_s, self.core.reserve), self.company(arriving))

    def company(self, arriving: Seq[Sequence] = ()) -> Company:
        """Those with a deadline: as the loop saw them when it last looked ahead, and who came since."""
        core = self.core
        # In the order in which sequences wander, so that none is missed on its way.
        here = list(dict.fromkeys([*arriving, *core.waiting, *core.running]))
        view = core.view if here else None
        now = core.clock()
        if view is None:
            return core.outlook.company(core.outlook.view(here, now))
        seen = set(view.timed)
        since = [one for one in here if one not in seen and one.timed]
        known = self._company
        if known is not None and known[0] is view and known[1] == since:
            return known[2]
        company = core.outlook.company(view, since, now + self._wait_s())
        self._company = view, since, company
        return company

    def stats(self, arriving: Seq[Sequence] = ()) -> EngineStats:
        """A snapshot of queue, pages, counters and coefficients."""
        core = self.core
        counters, pool, outlook = core.counters, core.pool, core.outlook
        running, waiting = len(core.running), len(core.waiting) + len(arriving)
        backlog, company = self._backlog_of(arriving), self.company(arriving)
        room_s = company.room_s
        return EngineStats(
            waiting=waiting,
            running=running,
            waiting_tokens=backlog.unread,
            pages_total=pool.total,
            pages_in_use=pool.in_use(),
            page_size=pool.page_size,
            open_slots=backlog.slots,
            open_context=backlog.context,
            queue_s=backlog.queue_s,
            timed_s=backlog.timed_s,
            slip_s=outlook.slip_s,
            step_s=core.step_s,
            timed_share=core.timed_time.now(core.clock()),
            timed_forward_s=company.forward_s,
            timed_room_s=room_s if room_s < inf else None,
            forwards=counters.forwards,
            forward_s=counters.forward_s,
            busy_s=counters.busy_s,
            slots=dict(counters.slots),
            generated_tokens=dict(counters.generated_tokens),
            finished=dict(counters.finished),
            denoise_steps=counters.denoise_steps,
            draft_steps=counters.draft_steps,
            prompt_tokens=counters.prompt_tokens,
            prefix_hit_tokens=counters.prefix_hit_tokens,
            preemptions=counters.preemptions,
            rung_changes=counters.rung_changes,
            tokens_per_forward=outlook.meter.to_dict(),
            cost_model=core.cost_model.summary(),
        )

    def _wait_s(self) -> float:
        """Until the forward under way ends, as far as it is predicted: nobody can join it."""
        return max(0.0, self.core.ends_s - self.core.clock())

    def _backlog_of(self, arriving: Seq[Sequence]) -> Backlog:
        """Reckoned again only after a step of the loop, and when somebody came or left."""
        core = self.core
        key = core.counters.forwards, len(core.running), len(core.waiting), len(arriving)
        if self._backlog is None or self._backlog[0] != key:
            self._backlog = key, core.outlook.backlog([*core.running, *core.waiting, *arriving])
        return self._backlog[1]
