"""A coding assistant: gaps filled while somebody types, in clumps, and classes written while somebody watches.

locust -f locustfiles/coding_assistant.py --headless --host http://127.0.0.1:8000 --duration 60
"""

from __future__ import annotations

from argparse import Namespace
from random import Random

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import gamma
from locustfiles.workload import CODING_ASSISTANT, Schedule, asks, at_times

CV = 3.0
"""Of the gaps between requests. Typing comes in clumps (the Azure code trace of 2023 has 13)."""


class CodingAssistant(Caller):
    """Short completions with a tight SLO, and classes."""

    title = "Coding assistant"
    purpose = "gaps filled while somebody types, classes written while somebody watches"

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        times = gamma(rate, CV, options.duration, rng)
        notes = {"arrivals": "Gamma", "rate_per_s": rate, "cv": CV}
        return Schedule(at_times(times, asks(CODING_ASSISTANT, options.model, rng)), options.duration, notes)
