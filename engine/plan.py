"""Rungs, ladders and plans: what a request may do, what was decided for it, and what it did.

The words are those of the design; the rules are those of `requests.md` sections 1 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Decoding(StrEnum):
    """How a block is made. `auto` exists in requests only: a rung always names one of these."""

    AR = "ar"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"


EQUAL_TO_AR = 0.01
"""Rungs that calibration shows to be within this of AR's quality count as equal to it (`requests.md` section 5)."""

_SAME_QUALITY = 1e-6

Audit = str | float
"""`"off"`, `"score"`, `"exact"`, or a tolerance in (0, 1)."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to decode: the policy (block length n, steps K, audit) of every mode.

    Attributes:
        decoding: the mode's name. AR has `block_length` 1.
        block_length: tokens of a canvas, the seed included (1..block_size).
        refinement_steps: K, the most denoise or draft steps of a block (1..block_length); the masks of a
            block are gone after K steps whatever the confidences are.
        threshold: commit early what is at least this confident; None = never early.
        audit: what the causal pass over a finished block does besides writing K/V.
        expected_quality: 0..1 as calibrated (lower confidence bound), None where nothing was measured.
        expected_tokens_per_forward: as calibrated, commits and verifies counted; None where nothing was measured.
        within_ar: whether calibration shows the quality to be within `EQUAL_TO_AR` of AR's: by the whole 95% interval
            of the difference on the same prompts.
        entropy_bound, remask: of diffusion, policies of a denoise step beside the rule (`kernels/unmask.py`): the sum
            of entropies up to which masks are committed early, less the largest, and the probability below which a
            token of the block is masked again, once; None = no such policy.
    """

    decoding: Decoding
    block_length: int = 1
    refinement_steps: int = 1
    threshold: float | None = None
    audit: Audit = "off"
    expected_quality: float | None = None
    expected_tokens_per_forward: float | None = None
    within_ar: bool = False
    entropy_bound: float | None = None
    remask: float | None = None

    @property
    def is_diffusion(self) -> bool:
        return self.decoding is Decoding.DIFFUSION

    @property
    def exact(self) -> bool:
        """Whether every token is the one AR would have chosen."""
        return self.decoding is not Decoding.DIFFUSION or self.audit == "exact"

    @property
    def keeps_ar_quality(self) -> bool:
        """Whether answers are AR's own, or as good as far as calibration shows."""
        return self.exact or self.within_ar

    @property
    def most_forwards_per_block(self) -> int:
        """Denoise or draft steps of a block, and the forward that commits or verifies it."""
        if self.block_length == 1:
            return 1
        # Every step commits a mask for good, unless it is taken back.
        steps = self.refinement_steps if self.remask is not None else min(self.refinement_steps, self.block_length - 1)
        return steps + 1

    @property
    def least_tokens_per_forward(self) -> float:
        """What a full block cannot fall below: all of it without an audit, one token where an audit may cut it."""
        settled = self.block_length if self.is_diffusion and self.audit in ("off", "score") else 1
        return settled / self.most_forwards_per_block

    @property
    def uses_draft_adapter(self) -> bool:
        return self.decoding is Decoding.SELF_SPECULATION

    @property
    def tolerance(self) -> float | None:
        """The audit's tolerance t, or None when the audit is a word."""
        return self.audit if isinstance(self.audit, float) else None

    @property
    def has_policies(self) -> bool:
        """Whether a denoise step follows more than the unmask rule."""
        return self.entropy_bound is not None or self.remask is not None

    @property
    def known_steps(self) -> bool:
        """Whether how many steps a block takes, and what is masked between them, depends on no token."""
        return self.threshold is None and not self.has_policies

    def policy(self) -> tuple[Decoding, int, int, float | None, Audit, float | None, float | None]:
        """What defines the rung, without what is expected of it."""
        return (
            self.decoding,
            self.block_length,
            self.refinement_steps,
            self.threshold,
            self.audit,
            self.entropy_bound,
            self.remask,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as in `ladder.json` and between deployments."""
        return {**asdict(self), "decoding": self.decoding.value}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Rung:
        """The inverse of `to_dict`; unknown keys (`from_token` of a plan entry) are ignored.

        Without `refinement_steps` diffusion has the released schedule (K = block_length), the others one step.
        """
        known = {name: data[name] for name in Rung.__dataclass_fields__ if name in data}
        known["decoding"] = Decoding(known["decoding"])
        if known.get("refinement_steps") is None:
            known["refinement_steps"] = known.get("block_length", 1) if known["decoding"] is Decoding.DIFFUSION else 1
        return Rung(**known)


AR = Rung(Decoding.AR, expected_tokens_per_forward=1.0)
"""Ordinary autoregressive decoding."""


def self_speculation(block_length: int, threshold: float | None = None) -> Rung:
    """Diffusion drafts that AR verifies. Threshold None or 0: one draft forward (contract 4.4)."""
    iterative = threshold is not None and threshold > 0
    return Rung(
        Decoding.SELF_SPECULATION,
        block_length=block_length,
        refinement_steps=block_length if iterative else 1,
        threshold=threshold if iterative else None,
        audit="exact",
    )


def diffusion(
    block_length: int,
    refinement_steps: int | None = None,
    threshold: float | None = None,
    audit: Audit = "off",
    entropy_bound: float | None = None,
    remask: float | None = None,
) -> Rung:
    """Block diffusion. Without a step budget K = block_length, the released schedule (contract 4.1, 4.2).

    Where a block has one step, policies change nothing: then it is the rung without them.
    """
    steps = max(1, block_length if refinement_steps is None else min(refinement_steps, block_length))
    if steps == 1 or block_length <= 2:
        entropy_bound = remask = None
    return Rung(Decoding.DIFFUSION, block_length, steps, threshold, audit, entropy_bound=entropy_bound, remask=remask)


def of_equal_quality(rungs: Sequence[Rung]) -> tuple[tuple[int, ...], ...]:
    """Places of rungs of equal expected quality, best first.

    All rungs of AR's quality are equal where there is an exact one; a rung without a number is a group of its own,
    in the given order.
    """
    groups: list[list[int]] = []
    order = list(range(len(rungs)))
    known = all(rung.expected_quality is not None for rung in rungs)
    if known:
        order.sort(key=lambda index: -(rungs[index].expected_quality or 0.0))

    def equal(best: Rung, other: Rung) -> bool:
        if best.exact:
            return other.exact or (known and other.within_ar)
        return known and (other.expected_quality or 0.0) >= (best.expected_quality or 0.0) - _SAME_QUALITY

    for index in order:
        if groups and equal(rungs[groups[-1][0]], rungs[index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(tuple(sorted(group)) for group in groups)


@dataclass(frozen=True, slots=True)
class Plan:
    """A ladder, the rung to start on, and what was promised.

    Attributes:
        ladder: rungs from best to fastest; the engine moves inside it, at borders, and never leaves it.
        start: index of the rung to start on.
        schedule: `(from_token, rung)` pairs of a pinned `plan` field, which replaces the ladder; from_token is the
            output offset of a block's first token, its pending one.
        predicted_p95_ms: the planner's prediction, arrival to last byte; None without one.
        slo_ms: total latency asked for; None without one.
        expected_tokens: output length that the planner reckoned with; None = as recent answers had.
        weight: share of the forwards against others without a deadline, and who goes first when not all deadlines can
            be kept; 1 is a request of no particular tier.
        reason: one sentence on what was chosen and why.
    """

    ladder: tuple[Rung, ...] = (AR,)
    start: int = 0
    schedule: tuple[tuple[int, Rung], ...] = ()
    predicted_p95_ms: float | None = None
    slo_ms: float | None = None
    expected_tokens: int | None = None
    weight: float = 1.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.ladder:
            raise ValueError("a plan needs at least one rung")
        if not 0 <= self.start < len(self.ladder):
            raise ValueError(f"start {self.start} is outside a ladder of {len(self.ladder)} rungs")

    @property
    def promised(self) -> bool:
        """Whether the planner expected it to be in time: what was let in late anyway keeps no deadline."""
        return self.slo_ms is not None and self.predicted_p95_ms is not None and self.predicted_p95_ms <= self.slo_ms

    @property
    def pinned(self) -> bool:
        """Whether nothing is left to the engine."""
        return len(self.ladder) == 1 or bool(self.schedule)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Every rung that may be used."""
        return tuple(rung for _, rung in self.schedule) or self.ladder

    @property
    def first(self) -> Rung:
        return self.schedule[0][1] if self.schedule else self.ladder[self.start]

    def rung_at(self, output_tokens: int) -> Rung:
        """The scheduled rung of a block that starts after so many output tokens (pinned `plan` only)."""
        current = self.schedule[0][1]
        for from_token, rung in self.schedule:
            if from_token <= output_tokens:
                current = rung
        return current

    def to_dict(self) -> dict[str, Any]:
        return {
            "ladder": [rung.to_dict() for rung in self.ladder],
            "start": self.start,
            "schedule": [{"from_token": at, **rung.to_dict()} for at, rung in self.schedule],
            "predicted_p95_ms": self.predicted_p95_ms,
            "slo_ms": self.slo_ms,
            "expected_tokens": self.expected_tokens,
            "weight": self.weight,
            "reason": self.reason,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Plan:
        return Plan(
            ladder=tuple(Rung.from_dict(rung) for rung in data["ladder"]),
            start=data["start"],
            schedule=tuple((entry["from_token"], Rung.from_dict(entry)) for entry in data.get("schedule", ())),
            predicted_p95_ms=data.get("predicted_p95_ms"),
            slo_ms=data.get("slo_ms"),
            expected_tokens=data.get("expected_tokens"),
            weight=data.get("weight", 1.0),
            reason=data.get("reason", ""),
        )


@dataclass(slots=True)
class PlanEntry:
    """One entry of the answer's `plan`: the rung in use from the block on that starts at output token `from_token`."""

    from_token: int
    rung: Rung

    def to_dict(self) -> dict[str, Any]:
        """The entry as an answer shows it; the step budget is null outside diffusion (`requests.md` section 6), and a
        policy stands there only where there is one."""
        rung = self.rung
        policies = {"entropy_bound": rung.entropy_bound, "remask": rung.remask}
        return {
            "from_token": self.from_token,
            "decoding": rung.decoding.value,
            "block_length": rung.block_length,
            "refinement_steps": rung.refinement_steps if rung.is_diffusion else None,
            "threshold": rung.threshold,
            "audit": rung.audit,
            **{name: value for name, value in policies.items() if value is not None},
        }


def audit_value(value: object) -> Audit:
    """Checks an `audit` value; raises ValueError with what is allowed."""
    if isinstance(value, str) and value in ("off", "score", "exact"):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < 1:
        return float(value)
    raise ValueError("allowed: 'off', 'score', 'exact', or a number between 0 and 1 (both excluded)")
