"""Settings of a whole Python process that serves requests while an engine or a planner works beside them."""

from __future__ import annotations

import ctypes
import gc
import sys

SWITCH_S = 0.0001
"""How long a thread may keep the interpreter while another one waits. A forward is hundreds of calls that each give it
up for a moment, and with the default of 5 ms every one of them could wait that long for a request being parsed. Shorter
still, switching costs more than waiting does."""
COLLECTIONS = (20_000, 20, 50)
"""Allocations before the garbage of each generation is looked for."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt (malloc.h)."""
_KEPT_BYTES = 64 << 20
"""The most that a heap of another thread than the first holds (glibc's HEAP_MAX_SIZE)."""


def for_serving(beside_an_engine: bool) -> None:
    """Call once everything is loaded. What exists then is never looked through again for garbage.

    Collections of model, tokenizer and modules stopped a replica for up to 130 ms, longer than a tight SLO.

    `beside_an_engine`: whether an engine's thread runs in this process, which has to get the interpreter soon.
    """
    if beside_an_engine:
        sys.setswitchinterval(SWITCH_S)
        _keep_freed_memory()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


def _keep_freed_memory() -> None:
    """Keeps what a forward on the CPU has freed for the next one, where malloc is glibc's.

    It gave the end of a heap back to the system and asked for it again several times a forward, and every page of it
    was found anew: 2% of an engine's time (AMD EPYC, stepdial-tiny).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)
