"""What is read beside a load: replicas, busy engines, CPU by process, and the price of a refusal."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from locustfiles.cluster_metrics import ClusterSample, read_sample, sample_of
from locustfiles.processes import LOAD_GENERATOR, SERVE_REPLICA, CpuMeter, role_of
from locustfiles.refusal_cost import refusal_cost
from locustfiles.report.cluster import cluster_use, peak

METRICS = """\
# HELP stepdial_requests_total Requests.
# TYPE stepdial_requests_total counter
stepdial_requests_total{endpoint="chat",router="r1"} 9.0
# TYPE stepdial_engine_queue_seconds gauge
stepdial_engine_queue_seconds{replica="a"} 0.5
stepdial_engine_queue_seconds{replica="b"} 0.25
# TYPE stepdial_engine_busy_seconds counter
stepdial_engine_busy_seconds_total{replica="a"} 12.0
# TYPE stepdial_engine_sequences_running gauge
stepdial_engine_sequences_running{replica="a"} 3.0
stepdial_engine_sequences_running{replica="b"} 4.0
"""


def test_metrics_are_read_by_replica() -> None:
    sample = sample_of(METRICS, 7.0, {"x": 1.0})
    assert sample.replicas == 2
    assert sample.queue_s == {"a": 0.5, "b": 0.25}
    assert sample.busy_s == {"a": 12.0}
    assert (sample.running, sample.at_s, sample.cpu_s) == (7.0, 7.0, {"x": 1.0})


def test_metrics_that_cannot_be_read_are_a_sample_with_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sample = read_sample(f"http://127.0.0.1:{port}", 1.0, {"x": 2.0})
    assert sample.error is not None
    assert sample.cpu_s == {"x": 2.0}


def test_use_is_counted_while_the_load_runs() -> None:
    samples = [
        ClusterSample(
            float(at_s),
            queue_s={"a": 1.0} if at_s < 5 else {"a": 2.0, "b": 1.0},
            busy_s={"a": 0.5 * at_s},
            # Half a core, then all of one from second 10 on; the flood after second 20 must not count.
            cpu_s={
                "Router 1": 0.1 * at_s + (100 if at_s > 20 else 0),
                "Replica 2": 3 + 0.5 * at_s + 0.5 * max(0, at_s - 10),
            },
        )
        for at_s in range(26)
    ]
    samples[3] = ClusterSample(3.0, cpu_s=samples[3].cpu_s, error="timed out")
    use = cluster_use(samples, 20.0)
    assert (use.readings, use.failed_readings, use.most_replicas, use.most_queue_s) == (21, 1, 2, 3.0)
    assert use.mean_replicas == pytest.approx((4 * 1 + 16 * 2) / 20)
    assert [each.name for each in use.processes] == ["Replica 2", "Router 1"]
    replica, router = use.processes
    assert (replica.seconds, replica.mean, replica.peak) == pytest.approx((15.0, 0.75, 1.0))
    assert (router.seconds, router.peak) == pytest.approx((2.0, 0.1))
    assert use.engines[0].mean == pytest.approx(0.5)
    assert use.busiest == "Replica"


def test_the_load_generator_is_never_the_cluster_s_busiest() -> None:
    samples = [
        ClusterSample(float(at_s), cpu_s={LOAD_GENERATOR: 1.0 * at_s, "Router 1": 0.1 * at_s}) for at_s in (0, 1)
    ]
    assert cluster_use(samples, 10.0).busiest == "Router"


def test_a_peak_over_less_than_a_window_is_the_mean() -> None:
    assert peak([(0.0, 0.0), (1.0, 1.0), (2.0, 1.0)]) == pytest.approx(0.5)


def test_a_refusal_costs_what_the_flood_added() -> None:
    before = {"Router 1": 10.0, "Router 2": 0.0, "HTTP proxy 3": 5.0, LOAD_GENERATOR: 1.0}
    quiet = {"Router 1": 10.1, "Router 2": 0.0, "HTTP proxy 3": 5.0, LOAD_GENERATOR: 1.0}
    after = {"Router 1": 12.5, "Router 2": 1.0, "HTTP proxy 3": 6.0, LOAD_GENERATOR: 9.0}
    statuses = [400] * 900 + [429] * 100 + [200] * 5
    cost = refusal_cost(statuses, [3.0] * 1005, (before, quiet, after), 1.0, 4.0, 8)
    assert cost.refusals == 1000
    assert cost.others == {"200": 5}
    # Routers: 2.4 s - 4 x 0.1 s of background, and 1 s.
    assert cost.router_ms == pytest.approx(3.0)
    assert cost.cpu_ms == pytest.approx({"Router": 3.0, "HTTP proxy": 1.0})
    assert cost.p95_ms == 3.0


def test_a_flood_without_refusals_costs_nothing_and_says_what_came() -> None:
    cost = refusal_cost([200, 500], [1.0, 1.0], ({}, {}, {}), 1.0, 1.0, 8)
    assert (cost.refusals, cost.router_ms) == (0, None)
    assert cost.others == {"200": 1, "500": 1}


def test_names_of_serve_s_processes() -> None:
    found = SERVE_REPLICA.search("ray::ServeReplica:stepdial:Router.handle_request_streaming")
    assert found is not None
    assert found[1] == "Router"
    assert role_of("HTTP proxy 4711") == "HTTP proxy"


BURN = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
until = time.process_time() + 0.4
while time.process_time() < until: pass
print("done", flush=True)
time.sleep(60)
"""


def test_cpu_is_read_of_the_process_that_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert CpuMeter(f"http://127.0.0.1:{port}").problem == (
        f"no process of this machine that may be seen listens on port {port}"
    )
    child = subprocess.Popen([sys.executable, "-c", BURN, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        meter = CpuMeter(f"http://127.0.0.1:{port}")
        before = meter.read()
        assert child.stdout.readline() == "done\n"
        after = meter.read()
    finally:
        child.kill()
        child.wait()
    assert meter.problem is None
    assert LOAD_GENERATOR in after
    grown = sum(after.values()) - sum(before.values()) - (after[LOAD_GENERATOR] - before[LOAD_GENERATOR])
    assert 0.2 < grown < 0.8
    time.sleep(0.05)
    assert meter.read().keys() == after.keys(), "what ended keeps what it had used"


def test_a_cluster_elsewhere_is_not_measured() -> None:
    assert CpuMeter("http://192.0.2.1:8000").problem == "192.0.2.1 is not this machine"
