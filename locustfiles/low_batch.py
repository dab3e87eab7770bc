"""A low-batch API: one caller that asks one thing at a time, where a diffusion model's latency counts most.

locust -f locustfiles/low_batch.py --headless --host http://127.0.0.1:8000 --duration 60

Requests are still due at scheduled times; one that is due while another is open waits at the client, on the clock.
"""

from __future__ import annotations

from argparse import Namespace
from random import Random

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import poisson
from locustfiles.workload import LOW_BATCH, Schedule, asks, at_times


class LowBatch(Caller):
    """One request at a time."""

    title = "Low-batch API"
    purpose = "one caller, one request at a time"
    rate = 1.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        times = poisson(rate, options.duration, rng)
        notes = {"arrivals": "Poisson", "rate_per_s": rate}
        return Schedule(at_times(times, asks(LOW_BATCH, options.model, rng)), options.duration, notes, at_once=1)
