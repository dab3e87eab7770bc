"""The files of a run: what it leaves, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from locustfiles.cluster_metrics import ClusterSample
from locustfiles.record import Record, read_records
from locustfiles.report.cluster import ClusterUse, cluster_use
from locustfiles.report.prediction import Prediction, prediction
from locustfiles.report.summary import Summary, summaries

RECORDS, SAMPLES, RUN = "records.jsonl", "samples.jsonl", "run.json"
"""What a run leaves: a line per request, a line per second, and facts about it."""
REPORT, PAGE = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """All numbers of a run.

    Attributes:
        run: facts (`run.json`). total, kinds: of all requests, and by kind of request.
    """

    run: dict[str, Any]
    total: Summary
    kinds: list[Summary]
    prediction: Prediction
    cluster: ClusterUse


def write_report(folder: Path) -> Report:
    """Writes `report.json` and `report.html`. Raises OSError and ValueError for files that are not there or broken."""
    # Both take seconds to import, which a run that has not ended yet should not pay.
    from locustfiles.report.page import render
    from locustfiles.report.plots import draw_all

    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    records = read_records(folder / RECORDS)
    samples = read_samples(folder / SAMPLES)
    report = make_report(run, records, samples)
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(report, draw_all(report, records, samples)), encoding="utf-8")
    return report


def make_report(run: dict[str, Any], records: list[Record], samples: list[ClusterSample]) -> Report:
    """The numbers, of the requests and readings of a run."""
    total, kinds = summaries(records, run["span_s"])
    load_end_s = run["drained_s"] if run["drained_s"] is not None else run["end_s"]
    return Report(run, total, kinds, prediction(records), cluster_use(samples, load_end_s))


def read_samples(path: Path) -> list[ClusterSample]:
    """Raises ValueError naming a line that is no sample."""
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                samples.append(ClusterSample(**json.loads(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return samples
