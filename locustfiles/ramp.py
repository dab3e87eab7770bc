"""A ramp: mixed tiers whose rate grows evenly, from `--first-rate` to `--rate`: where does the cluster start to refuse?

locust -f locustfiles/ramp.py --headless --host http://127.0.0.1:8000 --first-rate 1 --rate 12 --duration 120
"""

from __future__ import annotations

from argparse import Namespace
from random import Random
from typing import Any

from locust import events

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import ramp
from locustfiles.workload import MIXED_TIERS, Schedule, asks, at_times


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--first-rate", type=float, default=1.0, help="Arrivals per second at the start of the ramp.")


class Ramp(Caller):
    """All tiers at once, more and more of them."""

    title = "Ramp"
    purpose = "every tier at once, at a rate that grows evenly"
    rate = 10.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        last_rate = cls.rate_of(options)
        times = ramp(options.first_rate, last_rate, options.duration, rng)
        notes = {"arrivals": "Poisson, ramp", "first_rate_per_s": options.first_rate, "last_rate_per_s": last_rate}
        return Schedule(at_times(times, asks(MIXED_TIERS, options.model, rng)), options.duration, notes)
