"""The CPU of a refusal, from the CPU seconds of a cluster's processes around a flood of refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deployments.history import quantile
from locustfiles.processes import LOAD_GENERATOR, role_of

TARGET_MS = 2.0
INFEASIBLE_SLO_MS = 0.001
"""An SLO that not even an idle replica meets, whatever the model."""


@dataclass(slots=True)
class RefusalCost:
    """What a flood of refusals took.

    Attributes:
        refusals: answers that were refusals. others: HTTP statuses of the answers that were not, with their number.
        seconds: length of the flood. idle_seconds: length of the quiet time before it, whose CPU is not the refusals'.
        p50_ms, p95_ms: of a refusal at the client, with `at_once` of them open.
        cpu_ms: of each role, per refusal; without the load generator.
        router_ms: of the routers, None where their processes cannot be seen.
    """

    refusals: int = 0
    others: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    idle_seconds: float = 0.0
    at_once: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    cpu_ms: dict[str, float] = field(default_factory=dict)
    router_ms: float | None = None
    target_ms: float = TARGET_MS


def refusal_cost(
    statuses: Sequence[int],
    times_ms: Sequence[float],
    cpu_s: Sequence[Mapping[str, float]],
    idle_seconds: float,
    seconds: float,
    at_once: int,
) -> RefusalCost:
    """Divides CPU by refusals.

    `cpu_s` are three readings by process name: before the quiet time, after it, and after the flood. What each process
    used in the quiet time is taken off, scaled to the flood's length.
    """
    refusals = sum(status in (400, 429, 503) for status in statuses)
    others = Counter(str(status) for status in statuses if status not in (400, 429, 503))
    cost = RefusalCost(refusals, dict(others), seconds, idle_seconds, at_once)
    if not refusals:
        return cost
    first, quiet, last = cpu_s
    by_role: dict[str, float] = {}
    for name, used in last.items():
        if name == LOAD_GENERATOR:
            continue
        idle_s = quiet.get(name, 0.0) - first.get(name, 0.0)
        background_s = idle_s * seconds / idle_seconds if idle_seconds else 0.0
        spent_s = max(0.0, used - quiet.get(name, 0.0) - background_s)
        by_role[role_of(name)] = by_role.get(role_of(name), 0.0) + spent_s
    cost.cpu_ms = {role: used / refusals * 1e3 for role, used in by_role.items()}
    cost.router_ms = cost.cpu_ms.get("Router")
    cost.p50_ms, cost.p95_ms = quantile(list(times_ms), 0.5), quantile(list(times_ms), 0.95)
    return cost
