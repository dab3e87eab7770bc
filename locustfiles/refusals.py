"""What a refusal costs: a flood of requests that no replica could serve in time, divided into the CPU that they took.

    locust -f locustfiles/refusals.py --headless --host http://127.0.0.1:8000 --refusals 10

The same phase follows any other load file when `--refusals` is above 0. A refusal is to take at most 2 ms of CPU,
so that the engine and not the ingress saturates first.
"""

from __future__ import annotations

from argparse import Namespace
from random import Random

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.workload import Schedule


class Refusals(Caller):
    """No load before the flood."""

    title = "Refusals alone"
    purpose = "what a refusal costs"
    rate = 0.0
    refusals_s = 10.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        return Schedule(iter(()), 0.0, {"arrivals": "none; see the refusals"})
