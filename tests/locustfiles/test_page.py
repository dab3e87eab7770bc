"""The page: complete in itself, with the numbers in its tables."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from locustfiles.cluster_metrics import ClusterSample
from locustfiles.record import write_records
from locustfiles.refusal_cost import refusal_cost
from locustfiles.report import files
from tests.locustfiles.records_by_hand import RECORDS, RUN

SAMPLES = [
    ClusterSample(float(at_s), {"a": 1.0}, {"a": 0.5 * at_s}, cpu_s={"Router 1": 0.1 * at_s, "Replica 2": 0.9 * at_s})
    for at_s in range(12)
]


class Tables(HTMLParser):
    """Cells by table id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._table = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._table = dict(attrs)["id"] or ""
            self.rows[self._table] = []
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag in ("td", "th"):
            self.rows[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[self._table][-1][-1] += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cost = refusal_cost([400] * 10, [3.0] * 10, ({}, {}, {"Router 1": 0.015}), 1.0, 1.0, 8)
    write_records(tmp_path / files.RECORDS, RECORDS)
    (tmp_path / files.SAMPLES).write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in SAMPLES))
    (tmp_path / files.RUN).write_text(json.dumps({**RUN, "refusals": asdict(cost)}))
    return tmp_path


def test_tables_have_the_numbers(folder: Path) -> None:
    files.write_report(folder)
    tables = Tables((folder / files.PAGE).read_text()).rows
    fast = next(row for row in tables["attainment"] if row[0] == "fast")
    assert fast[1:5] == ["realtime", "8", "6", "1 × 400, 1 × 429"]
    assert fast[5:10] == ["2", "3", "37.5%", "50.0%", "100.0%"]
    assert fast[10:] == ["75.0%", "0.900", "0.750", "0.20", "25.0%"]
    assert [row[0] for row in tables["latency"][2:]] == ["fast", "patient", "all"]
    assert next(row for row in tables["latency"] if row[0] == "patient")[9:13] == ["1000"] * 4
    assert next(row for row in tables["rungs"] if row[0] == "fast")[8] == "diffusion n=8 K=2 75.0%, ar 25.0%"
    assert next(row for row in tables["prediction"] if row[0] == "diffusion")[5] == "50.0%"
    assert next(row for row in tables["cluster"] if row[0] == "CPU of Replica 2")[2:] == ["0.90", "0.90"]
    assert tables["refusals"][-1] == ["within the target", "1.50"]
    assert {row[0] for row in tables["errors"][1:]} == {"the stream ended before its end", "status 400: no such field"}


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(folder: Path) -> None:
    files.write_report(folder)
    page = (folder / files.PAGE).read_text()
    assert "locust &lt;b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    images = re.findall(r'alt="([^"]+)" src="data:image/png;base64,iVBORw0KGgo', page)
    assert images == [
        "Arrivals and what became of them",
        "Latency from the scheduled arrival",
        "Rungs used, by share of output tokens",
        "Predicted p95 and actual latency",
        "Replicas and queued work over time",
        "CPU by process",
    ]


def test_the_json_has_the_same_numbers(folder: Path) -> None:
    files.write_report(folder)
    report = json.loads((folder / files.REPORT).read_text())
    assert report["kinds"][0]["attainment_of_offered"] == 0.375
    assert report["total"]["goodput_per_s"] == pytest.approx(0.3)
    assert report["prediction"]["overall"]["answers"] == 4
    assert report["cluster"]["busiest"] == "Replica"


def test_lengths_only_says_that_quality_is_not_counted(folder: Path) -> None:
    records = [replace(each, right=None) for each in RECORDS if each.answered]
    write_records(folder / files.RECORDS, records)
    files.write_report(folder)
    assert "quality is not counted" in (folder / files.PAGE).read_text()


def test_a_run_without_requests_has_a_report(folder: Path) -> None:
    (folder / files.RECORDS).write_text("")
    (folder / files.SAMPLES).write_text("")
    files.write_report(folder)
    assert "Cost of a refusal" in (folder / files.PAGE).read_text()


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        files.write_report(tmp_path)
