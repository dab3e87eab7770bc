"""A burst: mixed tiers at a steady rate, and for a while `--factor` times as many.

locust -f locustfiles/burst.py --headless --host http://127.0.0.1:8000 --rate 2 --factor 6 --duration 60
"""

from __future__ import annotations

from argparse import Namespace
from random import Random
from typing import Any

from locust import events

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import burst
from locustfiles.workload import MIXED_TIERS, Schedule, asks, at_times


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--factor", type=float, default=5.0, help="How many times the rate the burst has.")
    parser.add_argument("--begin", type=float, default=0.0, help="Second at which it begins; 0 = after a third.")
    parser.add_argument("--length", type=float, default=0.0, help="Seconds it lasts; 0 = a sixth of the run.")


class Burst(Caller):
    """All tiers at once, with a burst in the middle."""

    title = "Burst"
    purpose = "every tier at once, with a burst in the middle"
    rate = 2.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        begin_s, length_s = options.begin or options.duration / 3, options.length or options.duration / 6
        times = burst(rate, options.factor, begin_s, length_s, options.duration, rng)
        notes = {
            "arrivals": "Poisson, burst", "rate_per_s": rate, "factor": options.factor, "begin_s": begin_s,
            "length_s": length_s,
        }  # fmt: skip
        return Schedule(at_times(times, asks(MIXED_TIERS, options.model, rng)), options.duration, notes)
