"""Which rungs a request may be given, best first: its pin, or what its fields, SLO, tier and key leave open.

The answer does not depend on the load, so it is worked out once per kind of request and kept: planning then only
predicts. What never lies on the frontier of quality against cost, under any load, is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deployments.bounds import check_rungs, quality_floor, steps_allowed
from deployments.prediction import most_forwards
from deployments.prediction_tables import RungTable
from deployments.quality import BUDGETS
from engine.errors import InvalidRequest
from engine.plan import AR, Rung, diffusion, of_equal_quality
from engine.request import allowed_rungs, equivalent_to_ar, pinned_rung, scheduled_plan, unmeasured_length

if TYPE_CHECKING:
    from deployments.goal import Goal
    from deployments.keys import ApiKey
    from deployments.quality import QualityMap
    from deployments.tiers import Tier
    from engine.request import GenerationOptions

MOST_RUNGS = 8
"""A plan's ladder has no more (`requests.md` section 5)."""
MOST_MENUS = 1024


@dataclass(frozen=True, slots=True)
class Menu:
    """Rungs, best first, with what planning needs of them worked out.

    Attributes:
        groups: indices of rungs of equal quality, best first.
        pinned: whether the request itself left a single choice.
        remark: what whoever asked should know of the choice, for the plan's reason; empty where there is nothing.
    """

    rungs: tuple[Rung, ...]
    pinned: bool = False
    remark: str = ""
    table: RungTable = field(init=False, compare=False)
    groups: tuple[range, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", RungTable(self.rungs))
        groups = of_equal_quality(self.rungs)
        object.__setattr__(self, "groups", tuple(range(group[0], group[-1] + 1) for group in groups))


def frontier(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs that no other one beats under every load, best first.

    A load sets the price of a forward and the price of a slot, so a rung is beaten for good by one of at least its
    quality that takes no more forwards and no more slots per token. Unmeasured rungs are kept in their order.
    """
    if any(rung.expected_quality is None for rung in rungs):
        return tuple(rungs)

    def cost(rung: Rung) -> tuple[float, float]:
        per_token = most_forwards(rung, 1024) / 1024
        if rung.expected_tokens_per_forward:
            per_token = min(per_token, 1 / rung.expected_tokens_per_forward)
        return per_token, per_token * rung.block_length

    def beats(one: Rung, other: Rung) -> bool:
        mine, its = (-(one.expected_quality or 0.0), *cost(one)), (-(other.expected_quality or 0.0), *cost(other))
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))

    kept = [rung for rung in rungs if not any(beats(other, rung) for other in rungs)]
    return tuple(sorted(kept, key=lambda rung: -(rung.expected_quality or 0.0)))


def thinned(rungs: Sequence[Rung], most: int = MOST_RUNGS) -> tuple[Rung, ...]:
    """At most `most` rungs, evenly spread, the first and the last included."""
    if len(rungs) <= most:
        return tuple(rungs)
    return tuple(rungs[round(place * (len(rungs) - 1) / (most - 1))] for place in range(most))


class Menus:
    """The menus of one model, tiers and keys; kept by what they depend on."""

    def __init__(self, quality: QualityMap, block_size: int) -> None:
        self.quality = quality
        self.block_size = block_size
        self._kept: OrderedDict[tuple[object, ...], Menu] = OrderedDict()

    def menu(
        self, options: GenerationOptions, tier: Tier, tier_named: bool, goal: Goal, key: ApiKey | None = None
    ) -> Menu:
        """The menu of a request. Raises InvalidRequest where its fields and its tier leave nothing."""
        scheduled = scheduled_plan(options, self.block_size)
        floor = quality_floor(options, tier, key)
        if scheduled is not None:
            rungs = tuple(self.quality.described(rung) for _, rung in scheduled.schedule)
            check_rungs(rungs, "plan", floor, tier)
            return Menu(rungs[:1], pinned=True)
        name = (
            tier, floor, goal.bounded, goal.stated, tier_named, options.decoding, options.block_length,
            options.refinement_steps, options.min_refinement_steps, options.max_refinement_steps, options.audit,
            options.threshold_given, options.threshold, options.entropy_bound, options.remask,
        )  # fmt: skip
        menu = self._kept.get(name)
        if menu is None:
            menu = self._kept[name] = self._made(options, tier, tier_named, goal, floor)
            if len(self._kept) > MOST_MENUS:
                self._kept.popitem(last=False)
        return menu

    def _made(self, options: GenerationOptions, tier: Tier, tier_named: bool, goal: Goal, floor: float | None) -> Menu:
        # With an SLO, the tier's included, a request for diffusion leaves the budget to the plan.
        open_budget = (
            goal.bounded
            and options.decoding == "diffusion"
            and options.refinement_steps is None
            and not options.commits_named
        )
        pin = None if open_budget else pinned_rung(options, self.block_size)
        if pin is not None:
            described = self.quality.described(pin)
            check_rungs((described,), "decoding", floor, tier)
            return Menu((described,), pinned=True)
        # The floor is looked at last, so that a refusal can say how much there is.
        options = options.model_copy(update={"min_expected_quality": None})
        if open_budget:
            rungs = allowed_rungs(options, self.quality.diffusion) or self._unmeasured(options)
        else:
            lossy = goal.bounded and (tier.lossy or (goal.stated and not tier_named))
            ladder = self.quality.ladder or (AR,)
            rungs = allowed_rungs(options, ladder if lossy else equivalent_to_ar(ladder))
        rungs = tuple(rung for rung in rungs if rung.decoding.value in tier.decodings)
        rungs = tuple(rung for rung in rungs if not rung.is_diffusion or steps_allowed(rung, tier))
        good = tuple(rung for rung in rungs if floor is None or rung.exact or (rung.expected_quality or 0.0) >= floor)
        if not good:
            raise self._nothing(rungs, floor, tier)
        return Menu(thinned(frontier(good), 2 * MOST_RUNGS), remark=unmeasured_length(options, good))

    def _unmeasured(self, options: GenerationOptions) -> tuple[Rung, ...]:
        """Budgets of a block length, step range or audit that the calibration does not have, most steps first."""
        length = options.block_length or self.block_size
        low = options.min_refinement_steps or 1
        if low > length:
            raise InvalidRequest(
                "min_refinement_steps", f"min_refinement_steps is {low}; allowed: at most block_length ({length})"
            )
        high = min(options.max_refinement_steps or length, length)
        audit = "off" if options.audit is None else options.audit
        steps = {low, high, *(steps for steps in BUDGETS if low <= steps <= high)}
        return tuple(self.quality.described(diffusion(length, count, None, audit)) for count in sorted(steps)[::-1])

    def _nothing(self, rungs: Sequence[Rung], floor: float | None, tier: Tier) -> InvalidRequest:
        if rungs and floor is not None:
            known = [rung.expected_quality for rung in rungs if rung.expected_quality is not None]
            allowed = f"at most {max(known):g}" if known else "none, for nothing was measured of these rungs"
            return InvalidRequest(
                "min_expected_quality",
                f"min_expected_quality is {floor:g}; allowed with the request's other fields: {allowed}",
            )
        steps = f"{tier.min_refinement_steps or 1} to {tier.max_refinement_steps or self.block_size}"
        modes = ", ".join(tier.decodings)
        return InvalidRequest(
            "service_tier",
            f"no rung of this model fits the request's fields in tier {tier.name!r}; allowed there: {modes}, with "
            f"{steps} refinement steps",
        )
