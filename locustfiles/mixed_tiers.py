"""Mixed tiers with open-loop Poisson arrivals: `make loadtest`, or against a server that runs already

locust -f locustfiles/mixed_tiers.py --headless --host http://127.0.0.1:8000 --rate 4 --duration 60
"""

from __future__ import annotations

from argparse import Namespace
from random import Random

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import poisson
from locustfiles.workload import MIXED_TIERS, Schedule, asks, at_times


class MixedTiers(Caller):
    """All tiers at once, at a steady rate."""

    title = "Mixed tiers"
    purpose = "every tier at once, at a steady rate"

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        times = poisson(rate, options.duration, rng)
        notes = {"arrivals": "Poisson", "rate_per_s": rate}
        return Schedule(at_times(times, asks(MIXED_TIERS, options.model, rng)), options.duration, notes)
