"""What became of one request, as the client saw it; a run is a list of these, kept as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REFUSAL_CODES = frozenset({"slo_infeasible", "slo_infeasible_under_load", "overloaded", "no_replica"})
"""Error codes of refusals before any forward (`error.code`). Any other error is an error."""


@dataclass(slots=True)
class Record:
    """One offered request.

    Attributes:
        number: counted from 0 in order of arrival. label: which kind of request of the load file. family: of its task.
        due_s: scheduled arrival, seconds after the start of the run.
        lag_ms: how late the load generator itself noticed the arrival.
        sent_ms: from the scheduled arrival to sending; more than `lag_ms` where a client asks one thing at a time.
        status: of HTTP; 0 without an answer. code: the error's code.
        error: what went wrong; None for an answer or a refusal.
        first_ms, total_ms: from the scheduled arrival to the first text and to the last byte.
        gaps_ms: between blocks of text, one less than there were blocks.
        right: whether the text is the task's only right answer; None where a request has none.
        prompt_tokens, completion_tokens: from the answer's `usage`.
        smallest_feasible_slo_ms: what a refusal offered.
        said: the answer's `stepdial` object.
    """

    number: int
    label: str
    family: str
    due_s: float
    lag_ms: float = 0.0
    sent_ms: float = 0.0
    status: int = 0
    code: str | None = None
    error: str | None = None
    first_ms: float | None = None
    total_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    right: bool | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    smallest_feasible_slo_ms: float | None = None
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        return self.error is None and self.code in REFUSAL_CODES

    @property
    def answered(self) -> bool:
        return self.error is None and self.status == 200

    @property
    def has_slo(self) -> bool:
        """Whether the answer says that there was one."""
        return bool(self.said.get("slo_ms") or self.said.get("ttft_slo_ms"))

    @property
    def in_time(self) -> bool:
        """Answered, and within its SLO by the client's clock from the scheduled arrival; without an SLO never late."""
        if not self.answered or self.total_ms is None:
            return False
        slo_ms, ttft_slo_ms = self.said.get("slo_ms"), self.said.get("ttft_slo_ms")
        if slo_ms is not None and self.total_ms > slo_ms:
            return False
        return ttft_slo_ms is None or (self.first_ms is not None and self.first_ms <= ttft_slo_ms)

    @property
    def wire_ms(self) -> float | None:
        """From sending to the last byte: what the server could have known, to compare with its prediction."""
        return None if self.total_ms is None else self.total_ms - self.sent_ms


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """What `write_records` wrote. Raises ValueError naming a line that is no record."""
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(Record(**json.loads(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return records
