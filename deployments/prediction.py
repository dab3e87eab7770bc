"""How long a request will take: pure functions of rungs, lengths and loads, for all rungs at all replicas at once.

A forward costs what `engine/cost_model.py` says, as each replica has fitted it. A request on a rung needs output /
tokens-per-forward of them. Others ride in the same forwards, so they make each one longer, and some are in front of
it, but both together are no more than the work that they have in all.

The spread of the forwards has two sources that know nothing of each other, the answer's length and the machine, so
p95 / p50 is exp(hypot(ln length ratio, ln machine ratio)): their logarithms add as independent deviations do. Before
that the forward under way has to end, of which half is left on average; how much is independent of both, so that the
distances of p95 from p50 add in the same way.

Who comes later and has a deadline goes before a request without one. The share of the time that went to deadlines of
late is lost to that as long as it is there: its own work, and what it finds there without a deadline, has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deployments.prediction_tables import Floats, LoadTable, RungTable
from engine.pace import KEPT, SAFETY

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad
    from engine.plan import Rung


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens of a request.

    Attributes:
        output_tokens: to reckon with (p95). median_tokens: to expect; None = the same.
        cached_tokens: of the prompt, those that are in the replica's shared pages.
    """

    prompt_tokens: int
    output_tokens: int
    median_tokens: int | None = None
    cached_tokens: int = 0


class Prediction(NamedTuple):
    """Seconds in the engine, from submission to the last token and to the first text.

    Attributes:
        kept_s, first_text_kept_s: the shortest deadlines that the replica's admission would let in: it reckons with the
            whole reckoned length and a margin of its own (`engine/pace.py`).
        accelerator_s: the share of the forwards that the request pays for, by its slots, at the median.
    """

    p50_s: float
    p95_s: float
    kept_s: float
    first_text_p95_s: float
    first_text_kept_s: float
    accelerator_s: float


class Predictions(NamedTuple):
    """A `Prediction` for every rung at every replica: arrays `[rungs, replicas]`."""

    p50_s: Floats
    p95_s: Floats
    kept_s: Floats
    first_text_p95_s: Floats
    first_text_kept_s: Floats
    accelerator_s: Floats

    def at(self, rung: int, replica: int) -> Prediction:
        return Prediction(*(values.item(rung, replica) for values in self))

    def of_replicas(self, replicas: slice) -> Predictions:
        return Predictions(*(values[:, replicas] for values in self))


def predict_all(
    rungs: RungTable,
    loads: LoadTable,
    prompt_tokens: int,
    cached_tokens: Sequence[int],
    median_tokens: Sequence[int],
    reckoned_tokens: Sequence[int],
) -> Predictions:
    """Latency of a request on every rung at every replica; tokens as in `Size`.

    Args:
        cached_tokens: by replica. median_tokens, reckoned_tokens: by rung.
    """
    # Here and not at import: who deploys, and the controller, plan nothing and do without Numba.
    from deployments.prediction_arithmetic import fill_predictions

    found = np.empty((len(Predictions._fields), len(rungs.names), len(loads)))
    cached, median, reckoned = (
        np.array(tokens, np.float64) for tokens in (cached_tokens, median_tokens, reckoned_tokens)
    )
    fill_predictions(
        found, rungs.records, loads.records, loads.measured(rungs), loads.tails(rungs), loads.timed, loads.within_room,
        float(prompt_tokens), cached, median, reckoned, SAFETY, KEPT,
    )  # fmt: skip
    return Predictions(*found)


def predict(rung: Rung, size: Size, load: ReplicaLoad) -> Prediction:
    """Latency of a request of `size` on `rung` at a replica with `load`."""
    median = size.output_tokens if size.median_tokens is None else size.median_tokens
    loads, cached = LoadTable([load]), [size.cached_tokens]
    return predict_all(_table_of(rung), loads, size.prompt_tokens, cached, [median], [size.output_tokens]).at(0, 0)


def most_forwards(rung: Rung, output_tokens: int) -> int:
    """Forwards after the prompt that a rung cannot exceed: a round settles at least a token, a block at most K + 1."""
    record = _table_of(rung).records[0]
    return int(math.ceil(output_tokens / record["settled"]) * record["steps"])


@lru_cache(maxsize=4096)
def _table_of(rung: Rung) -> RungTable:
    return RungTable((rung,))
