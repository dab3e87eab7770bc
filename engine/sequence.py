"""One sequence's life: prefill -> (denoise | draft)* -> look -> border -> ... -> finished.

`cached` tokens have causal K/V over clean text. At a border one more token, `pending`, is known and has none. Opening
a canvas puts pending at its first place and masks after it; K draft steps fill the masks; the look is the causal pass
over the canvas that writes K/V, judges the draft (audit) and yields the next pending token. AR is a canvas of one
token, which has nothing to draft (design section 4, `requests.md` section 2).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from enum import Enum
from math import inf, nan

from engine.decoding.rung_choice import Ladder, ladder_of
from engine.events import FinishReason, Report
from engine.output import Output
from engine.pace import MOST_RESERVE
from engine.plan import Plan, Rung

TERMS = struct.Struct("6d")
"""Of a `Sequence`'s `terms`: prompt tokens, `max_tokens`, output tokens that its plan reckons with (nan where it says
nothing and the answer may end by itself), when the answer and its first text are due (inf where they are not), and its
`reserve`."""


def _no_pages() -> array[int]:
    """An array of int64: of long contexts it is read at once, where a list would be read number by number."""
    return array("q")


class Phase(Enum):
    """What the next forward does for a sequence."""

    PREFILL = "prefill"
    DRAFT = "draft"
    LOOK = "look"


@dataclass(slots=True)
class Limits:
    """Where a sequence ends, and what may not be chosen before.

    Attributes:
        max_tokens, min_tokens: bounds of output tokens; EOS and stop ids are banned below min_tokens.
        stop_ids: EOS and the request's stop ids (without EOS under `ignore_eos`).
        max_thinking_tokens: budget inside thinking; None = none. think_open, think_close: the marker ids.
        context: most tokens that prompt and output may have together.
    """

    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    context: int
    max_thinking_tokens: int | None = None
    think_open: int = -1
    think_close: int = -1


@dataclass(slots=True)
class Sampling:
    """How tokens are chosen (`requests.md` section 3)."""

    temperature: float
    top_k: int
    top_p: float
    seed: int

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(slots=True)
class Canvas:
    """The block in work: `tokens[0]` is pending; whether a slot is masked is a flag, never a comparison of ids.

    `first_stop` is the offset of the first stop id that no mask precedes, -1 for none. `fitted`: its length was chosen
    for the end of the answer, so that it says nothing of what is kept of the rung's blocks. `taken_back`: offsets whose
    token was masked again (remask), which happens to each of them once.
    """

    tokens: list[int]
    masked: list[bool]
    masks_left: int
    step: int = 0
    first_stop: int = -1
    fitted: bool = False
    taken_back: set[int] = field(default_factory=set)

    @property
    def drafting(self) -> bool:
        return self.masks_left > 0


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one sequence. Owned and changed by the engine's loop alone.

    Attributes:
        tokens: prompt and output; from the first border on the last one is pending.
        cached: leading tokens with K/V. pages: the K/V pages, in order. page_keys: hash chain of its full pages.
        settled: output tokens that are decided and may be shown (pending is shown late by diffusion).
        score: whether log p_AR of the output is wanted; logprobs: (output offset, log p_AR) as the looks find them.
        due_s, first_due_s: deadlines of the whole answer and of its first text, engine clock; None without one.
        cut: whether the text is cut at `due_s` (`on_deadline: cut`).
        reserve: of its time, while it has rungs to step down to (`engine/pace.py`); known when the loop takes it in.
        put_off_s, first_put_off_s: until when it is to be done, and its first text to be there, where its own deadline
            was hopeless; -inf where it was not.
        timed: whether it has a deadline.
        pinned: whether its plan leaves nothing open.
        ladder: the plan's rungs. first_group: the quality that its plan starts with.
        terms: what was asked for, as `TERMS`: so packed, hundreds of sequences are read at once (`engine/outlook.py`).
        thinking_from: output offset at which an open thinking section began, else None.
        last_served: number of the last forward it took part in. block_forwards: forwards spent on the open block.
    """

    id: str
    tokens: list[int]
    prompt_tokens: int
    sampling: Sampling
    limits: Limits
    plan: Plan
    rung: Rung
    out: Output
    report: Report
    arrival_s: float
    cache_salt: str | None = None
    score: bool = False
    due_s: float | None = None
    first_due_s: float | None = None
    cut: bool = False
    reserve: float = MOST_RESERVE
    put_off_s: float = -inf
    first_put_off_s: float = -inf
    cached: int = 0
    has_pending: bool = False
    canvas: Canvas | None = None
    pages: array[int] = field(default_factory=_no_pages)
    page_keys: list[bytes] = field(default_factory=list)
    settled: int = 0
    thinking_from: int | None = None
    last_served: int = -1
    cancelled: bool = False
    finish_reason: FinishReason | None = None
    block_forwards: int = 0
    first_served_s: float | None = None
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    # Asked of everybody before every forward, so worked out once.
    timed: bool = field(init=False)
    pinned: bool = field(init=False)
    ladder: Ladder = field(init=False)
    first_group: int = field(init=False)
    terms: bytes = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.timed = self.due_s is not None or self.first_due_s is not None
        self.pinned = plan.pinned
        self.ladder = ladder_of(plan.ladder)
        self.first_group = self.ladder.group_of[plan.start]
        self.terms = self._terms()
        if not self.plan.schedule:
            # The ladder's own object: rungs are told apart by identity while the engine runs.
            self.rung = self.ladder.rungs[self.plan.start]

    def come_in(self, reserve: float) -> None:
        """Takes note of the `reserve` that it has."""
        self.reserve = reserve
        self.terms = self._terms()

    def put_off(self, due_s: float, first: bool) -> None:
        """Its deadline, or that of its `first` text, is hopeless: it is to be kept by `due_s` instead."""
        if first:
            self.first_put_off_s = due_s
        else:
            self.put_off_s = due_s
        self.terms = self._terms()

    def _terms(self) -> bytes:
        limits = self.limits
        open_end = nan if limits.stop_ids else limits.max_tokens
        expected = open_end if self.plan.expected_tokens is None else self.plan.expected_tokens
        due_s = inf if self.due_s is None else max(self.due_s, self.put_off_s)
        first_due_s = inf if self.first_due_s is None else max(self.first_due_s, self.first_put_off_s)
        return TERMS.pack(self.prompt_tokens, limits.max_tokens, expected, due_s, first_due_s, self.reserve)

    @property
    def output(self) -> list[int]:
        """Output tokens so far, pending included."""
        return self.tokens[self.prompt_tokens :]

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def prefill_target(self) -> int:
        """Tokens that need K/V before the next border: all but pending."""
        return len(self.tokens) - (1 if self.has_pending else 0)

    @property
    def phase(self) -> Phase:
        if self.cached < self.prefill_target:
            return Phase.PREFILL
        return Phase.DRAFT if self.open_canvas.drafting else Phase.LOOK

    @property
    def open_canvas(self) -> Canvas:
        """The block in work. Raises RuntimeError at a border, where there is none."""
        if self.canvas is None:
            raise RuntimeError(f"sequence {self.id} is at a border: open a canvas first")
        return self.canvas

    @property
    def at_border(self) -> bool:
        return self.canvas is None and self.has_pending and self.cached == self.prefill_target

    def urgency(self, patience_s: float) -> tuple[float, float]:
        """The order in which memory is given out, smallest first: by deadline. Without one, the answer is due
        `patience_s` (less for a larger weight) after its arrival, so that nothing waits for ever.
        """
        due = self.due_s if self.due_s is not None else self.arrival_s + patience_s / self.plan.weight
        return (due, self.arrival_s)

    def wanted(self) -> tuple[int, bool]:
        """Query tokens of the next forward, and whether they are text to read (then all that is left of it)."""
        unread = len(self.tokens) - self.has_pending - self.cached
        if unread > 0:
            return unread, True
        return (1 if self.canvas is None else len(self.canvas.tokens)), False

    def drop_cache(self) -> array[int]:
        """Preemption: forgets the K/V (to be computed again) and returns the pages to release. The canvas stays."""
        pages, self.pages, self.page_keys, self.cached = self.pages, _no_pages(), [], 0
        return pages
