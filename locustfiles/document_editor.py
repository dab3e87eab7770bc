"""A document editor: words replaced, lists reordered, tables turned into JSON, with somebody waiting.

locust -f locustfiles/document_editor.py --headless --host http://127.0.0.1:8000 --duration 60
"""

from __future__ import annotations

from argparse import Namespace
from random import Random

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from locustfiles.arrivals import poisson
from locustfiles.workload import DOCUMENT_EDITOR, Schedule, asks, at_times


class DocumentEditor(Caller):
    """Edits of medium length with a medium SLO."""

    title = "Document editor"
    purpose = "text that is mostly kept, with somebody waiting"
    rate = 2.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        times = poisson(rate, options.duration, rng)
        notes = {"arrivals": "Poisson", "rate_per_s": rate}
        return Schedule(at_times(times, asks(DOCUMENT_EDITOR, options.model, rng)), options.duration, notes)
