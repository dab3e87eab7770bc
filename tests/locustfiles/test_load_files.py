"""The load files as `locust -f` runs them, against a server process with known times, refusals and failures."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import pytest

from locustfiles.record import Record, read_records
from locustfiles.report import files
from tests.locustfiles.sse_server import FIRST_S, GAP_S

ROOT = Path(__file__).parent.parent.parent
LOCUST = Path(sys.executable).parent / "locust"
LIMIT_S = 60.0
SLACK_MS = 120.0
"""How late a busy machine may make the client, milliseconds."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the server of {url} ended with {process.returncode}"
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"{url} did not answer")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.locustfiles.sse_server", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, text=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/metrics", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def locust(
    load: str, host: str, folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], list[Record]]:
    """Runs a load file to its end."""
    command = [
        str(LOCUST), "-f", f"locustfiles/{load}.py", "--headless", "--only-summary", "--host", host,
        "--report", str(folder), *arguments,
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    records = read_records(folder / files.RECORDS) if (folder / files.RECORDS).exists() else []
    return ended, records


@pytest.fixture(scope="module")
def mixed(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record], str]:
    folder = tmp_path_factory.mktemp("mixed")
    ended, records = locust("mixed_tiers", server, folder, "--rate", "20", "--duration", "4", "--refusals", "1")
    assert records, ended.stderr
    return folder, records, ended.stdout


def test_every_arrival_has_a_record_and_none_waited_for_an_answer(mixed: tuple[Path, list[Record], str]) -> None:
    _, records, _ = mixed
    assert 40 < len(records) < 120
    assert [record.due_s for record in records] == sorted(record.due_s for record in records)
    assert median(record.sent_ms for record in records) < SLACK_MS
    # 400 ms of answer at 20 a second: many were open at once.
    assert records[-1].due_s < 4.0


def test_blocks_are_timed_as_they_arrive(mixed: tuple[Path, list[Record], str]) -> None:
    """The server's sleeps are lower bounds; what reads whole buffers would see all blocks at the end."""
    whole = [record for record in mixed[1] if record.answered and len(record.gaps_ms) == 2]
    assert len(whole) > 10
    for record in whole:
        assert record.first_ms is not None
        assert record.total_ms is not None
        assert record.first_ms >= FIRST_S * 1e3
        assert record.total_ms >= record.first_ms + sum(record.gaps_ms)
    assert median(record.first_ms or 0.0 for record in whole) < FIRST_S * 1e3 + SLACK_MS
    for block in (0, 1):
        assert median(record.gaps_ms[block] for record in whole) == pytest.approx(GAP_S * 1e3, abs=SLACK_MS)


def test_refusals_breaks_and_failures_are_told_apart(mixed: tuple[Path, list[Record], str]) -> None:
    by_label: dict[str, list[Record]] = {}
    for record in mixed[1]:
        by_label.setdefault(record.label, []).append(record)
    assert all(record.refused and record.smallest_feasible_slo_ms == 77 for record in by_label["realtime"])
    assert all(record.error == "status 500: said no" for record in by_label["flex"])
    assert all(record.status == 200 and record.error is not None for record in by_label["batch"])
    assert not any(record.answered for record in by_label["batch"] + by_label["flex"])
    assert all(record.answered for record in by_label["standard"])
    answered = [record for record in mixed[1] if record.answered]
    assert any(record.right for record in answered)
    assert all(record.right == (record.family == "reversing") for record in answered)


def test_files_and_table_of_a_run(mixed: tuple[Path, list[Record], str]) -> None:
    folder, records, printed = mixed
    report = json.loads((folder / files.REPORT).read_text())
    assert report["total"]["offered"] == len(records)
    assert report["cluster"]["most_replicas"] == 2
    assert report["run"]["refusals"]["refusals"] > 20
    assert report["run"]["arrivals"]["rate_per_s"] == 20
    assert "<table id=" in (folder / files.PAGE).read_text()
    assert "own SLO of 3 s" in printed


def test_one_at_a_time_waits_at_the_client_on_the_clock(server: str, tmp_path: Path) -> None:
    """Requests of 0.4 s at 5 a second: the line grows, and the times from the scheduled arrival with it."""
    ended, records = locust("low_batch", server, tmp_path, "--rate", "5", "--duration", "3")
    slow = [record for record in records if record.answered]
    assert len(slow) >= 5, ended.stderr
    assert all(record.answered or record.refused for record in records), [record.error for record in records]
    assert slow[-1].sent_ms > 600
    for record in slow:
        assert record.total_ms is not None
        assert record.wire_ms is not None
        assert record.total_ms == pytest.approx(record.sent_ms + record.wire_ms)
    assert median(record.wire_ms or 0.0 for record in slow) < 1e3 * (FIRST_S + 2 * GAP_S) + SLACK_MS
    begins = [(each.due_s * 1e3 + each.sent_ms, each.due_s * 1e3 + (each.total_ms or 0)) for each in slow]
    assert all(earlier[1] <= later[0] + 1 for earlier, later in pairwise(begins))


@pytest.mark.parametrize("load", ["ramp", "burst", "coding_assistant", "document_editor"])
def test_every_load_file_runs(load: str, server: str, tmp_path: Path) -> None:
    ended, records = locust(load, server, tmp_path, "--rate", "8", "--duration", "2")
    assert any(record.answered for record in records), ended.stderr
    assert (tmp_path / files.PAGE).exists()


def test_refusals_alone(server: str, tmp_path: Path) -> None:
    ended, records = locust("refusals", server, tmp_path, "--refusals", "1")
    assert ended.returncode == 0, ended.stderr
    assert records == []
    assert json.loads((tmp_path / files.REPORT).read_text())["run"]["refusals"]["refusals"] > 20


def test_a_trace_is_replayed_with_its_factors_in_the_report(server: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second:02}.5,1600,128" for second in range(40)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    ended, records = locust("trace_replay", server, tmp_path, "--trace", str(trace), "--rate", "8", "--duration", "2")
    assert len(records) == 16, ended.stderr
    run = json.loads((tmp_path / files.REPORT).read_text())["run"]
    assert run["span_s"] == 2.0
    arrivals = run["arrivals"]
    assert arrivals["trace"] == "trace.csv"
    assert arrivals["scale"]["time"] == pytest.approx(40 / 39 / 8)
    assert (arrivals["scale"]["prompt"], arrivals["scale"]["output"]) == (1 / 16, 1 / 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trace_replay", "--trace", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["mixed_tiers", "--rate", "-3"], "rate is -3.0"),
        (["burst", "--factor", "-1"], "factor is -1.0"),
    ],
)
def test_options_that_make_no_sense_end_the_run_with_one_sentence(
    arguments: list[str], says: str, server: str, tmp_path: Path
) -> None:
    ended, records = locust(arguments[0], server, tmp_path, *arguments[1:])
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert records == []


def test_the_web_ui_starts_a_run_and_shows_its_report(server: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            str(LOCUST), "-f", "locustfiles/mixed_tiers.py", "--web-host", "127.0.0.1", "--web-port", str(port),
            "--host", server, "--report", str(tmp_path),
        ],
        cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(url, process)
        page = httpx.get(url)
        assert page.status_code == 200
        assert "Locust" in page.text
        assert httpx.get(f"{url}/stepdial").status_code == 404
        form = {"user_count": "3", "spawn_rate": "3", "host": server, "rate": "10", "duration": "2"}
        assert httpx.post(f"{url}/swarm", data=form).json()["success"]
        until = time.monotonic() + LIMIT_S
        while httpx.get(f"{url}/stepdial").status_code == 404:
            assert time.monotonic() < until, "no report"
            time.sleep(0.3)
        assert "Mixed tiers" in httpx.get(f"{url}/stepdial").text
        assert httpx.get(f"{url}/stats/requests").json()["state"] == "stopped"
    finally:
        process.terminate()
        process.wait()
    records = read_records(tmp_path / files.RECORDS)
    assert 8 <= len(records) <= 36, "three users share one schedule"
    assert median(record.sent_ms for record in records) < SLACK_MS


PURE = (
    "arrivals", "trace_file", "workload", "record", "stream", "cluster_metrics", "processes", "refusal_cost",
    "report.files", "report.page",
)  # fmt: skip


def test_only_load_files_import_locust() -> None:
    """Locust patches the standard library, which reports and tests must not have done to them."""
    lines = [f"import locustfiles.{name}" for name in PURE]
    lines.append("import sys; print([name for name in ('locust', 'gevent', 'ray', 'torch') if name in sys.modules])")
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert ended.stdout == "[]\n"
