"""Arithmetic that runs for every request or before every forward, as machine code (Numba).

It is about a few hundred numbers, for which a call of NumPy costs more than its work. What is compiled is kept on disk
under its own file's date, so a compiled function calls those of its own file alone, and gets other files' constants as
arguments: a change elsewhere would not be seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, compiled at its first call with arguments of these types; division by zero gives inf or nan.

    It keeps the interpreter's lock: it is done in microseconds, and getting the lock back may take milliseconds.
    """
    options = {"error_model": "numpy"}
    try:
        return cast("Callable[P, T]", numba.njit(cache=True, **options)(function))
    except RuntimeError as error:  # where no folder can be written to
        logger.warning("%s is compiled anew in every process: %s", function.__qualname__, error)
        return cast("Callable[P, T]", numba.njit(**options)(function))
