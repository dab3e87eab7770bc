"""Traces of requests: arrival times with prompt and output lengths, from a file or generated, scaled to a small model.

Files are CSV with the columns of the Azure LLM inference traces (`TIMESTAMP,ContextTokens,GeneratedTokens`) or plain
ones (`timestamp,prompt_tokens,output_tokens`, timestamps in seconds or as dates). See "Splitwise: Efficient generative
LLM inference using phase splitting" (ISCA 2024) for the first.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Literal

from locustfiles.arrivals import gamma

COLUMNS = (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), ("timestamp", "prompt_tokens", "output_tokens"))
"""The two headers that are read: names of time, prompt tokens, output tokens."""
NAMED_LINES = 5
"""Bad lines that an error lists one by one."""
Z90 = 1.2815515655446004
"""The 90% point of the standard normal distribution."""


class TraceError(ValueError):
    """A trace that cannot be read or replayed; the text names the file and the lines."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace: seconds after the first one, and lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How a trace is fitted to a smaller machine and model; goes into the report as it is.

    Attributes:
        prompt, output: factors on lengths.
        time: factor on the gaps between arrivals; above 1 is slower.
        kept: share of the requests that are replayed.
        start_s: where in the trace the replay begins, seconds.
    """

    prompt: float = 1.0
    output: float = 1.0
    time: float = 1.0
    kept: float = 1.0
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths in tokens with this median and 90% point."""

    p50: float
    p90: float

    def draw(self, rng: Random) -> int:
        """One length, at least 1."""
        sigma = math.log(self.p90 / self.p50) / Z90
        return max(1, round(rng.lognormvariate(math.log(self.p50), sigma)))


CONV_PROMPT, CONV_OUTPUT, CONV_CV = LogNormal(1020, 2735), LogNormal(129, 424), 1.09
"""The conversations of the Azure trace of 2023: p50 and p90 of lengths, and the CV of gaps between arrivals."""


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a file, earliest first. Raises TraceError naming the bad lines, the header, or the file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            requests = list(_rows(path, csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    if not requests:
        raise TraceError(f"{path} has no requests")
    requests.sort(key=lambda request: request.at_s)
    first_s = requests[0].at_s
    return [TraceRequest(each.at_s - first_s, each.prompt_tokens, each.output_tokens) for each in requests]


def _rows(path: Path, lines: Any) -> Iterator[TraceRequest]:
    header = [name.strip() for name in next(lines, [])]
    names = next((names for names in COLUMNS if set(names) <= set(header)), None)
    if names is None:
        allowed = " or ".join(",".join(names) for names in COLUMNS)
        raise TraceError(f"{path}:1: the header is {','.join(header)!r}; allowed: {allowed}")
    places = [header.index(name) for name in names]
    bad: list[str] = []
    for row in lines:
        if not row:
            continue
        try:
            when, prompt, output = (row[place].strip() for place in places)
            yield TraceRequest(_seconds(when), _tokens(names[1], prompt), _tokens(names[2], output))
        except (ValueError, IndexError) as error:
            text = f"{len(row)} columns" if isinstance(error, IndexError) else str(error)
            bad.append(f"{path}:{lines.line_num}: {text}")
    if bad:
        more = f"\nand {len(bad) - NAMED_LINES} more" if len(bad) > NAMED_LINES else ""
        raise TraceError("\n".join(bad[:NAMED_LINES]) + more)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"the time is {text!r}; allowed: seconds, or a date like 2023-11-16 18:15:46.68") from None
        # Local clocks jump; a time without a zone is taken as UTC.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError(f"the time is {text!r}; allowed: a finite number of seconds")
    return value


def _tokens(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}; allowed: an integer of at least 1")
    return int(text)


def mean_rate(requests: Sequence[TraceRequest]) -> float:
    """Requests per second. Raises TraceError for a trace that has no length."""
    length_s = requests[-1].at_s - requests[0].at_s
    if length_s <= 0:
        raise TraceError(f"the trace has {len(requests)} requests in {length_s} s; at least two moments are needed")
    return len(requests) / length_s


def fit(
    requests: Sequence[TraceRequest],
    rate: float | None,
    how: Literal["stretch", "thin"],
    prompt: float,
    output: float,
    start_s: float = 0.0,
) -> Scale:
    """The scale that gives a whole trace a mean of `rate` requests per second (None: as it is).

    `stretch` slows time and keeps the clumps as they are; `thin` keeps a share of the requests and real time, which
    keeps slow waves and smooths clumps. Raises TraceError where thinning would have to add requests.
    """
    natural = mean_rate(requests)
    if rate is None:
        return Scale(prompt, output, start_s=start_s)
    if how == "stretch":
        return Scale(prompt, output, time=natural / rate, start_s=start_s)
    if rate > natural:
        raise TraceError(f"the rate is {rate}/s; allowed when thinning: at most the trace's own {natural:.2f}/s")
    return Scale(prompt, output, kept=rate / natural, start_s=start_s)


def scaled(requests: Sequence[TraceRequest], scale: Scale, duration_s: float, rng: Random) -> Iterator[TraceRequest]:
    """The part of a trace that fits into `duration_s` seconds of replay, with `scale` applied."""
    for request in requests:
        at_s = (request.at_s - scale.start_s) * scale.time
        if at_s < 0 or (scale.kept < 1 and rng.random() >= scale.kept):
            continue
        if at_s >= duration_s:
            return
        yield TraceRequest(
            at_s,
            max(1, round(request.prompt_tokens * scale.prompt)),
            max(1, round(request.output_tokens * scale.output)),
        )


def generated(
    rate: float,
    duration_s: float,
    rng: Random,
    cv: float = CONV_CV,
    prompt: LogNormal = CONV_PROMPT,
    output: LogNormal = CONV_OUTPUT,
) -> Iterator[TraceRequest]:
    """A trace with Gamma arrivals and lognormal lengths; the defaults are the Azure conversations' of 2023."""
    for at_s in gamma(rate, cv, duration_s, rng):
        yield TraceRequest(at_s, prompt.draw(rng), output.draw(rng))


def notes(scale: Scale, source: str) -> dict[str, Any]:
    """What a report says about a replayed trace."""
    return {"trace": source, "scale": asdict(scale)}
