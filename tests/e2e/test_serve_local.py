"""`make serve`'s process: a cluster of its own that Ctrl-C ends, all of it and only it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.serve_local import ROOT, free_port, port_is_free, render

LIMIT_S = 20


def test_a_copy_of_the_config_gets_the_port(tmp_path: Path) -> None:
    copy = render(ROOT / "cluster_configs" / "laptop.yaml", 9123, tmp_path)
    config = ServeDeploySchema.model_validate(yaml.safe_load(copy.read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.port != 9123, "Serve's proxy listens elsewhere"
    assert {"router_host": "127.0.0.1", "router_port": 9123}.items() <= config.applications[0].args.items()


def test_a_port_that_is_taken_is_said_so(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    assert not port_is_free(port)
    command = [sys.executable, "-m", "deployments.serve_local", "--port", str(port)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in ended.stdout


def test_ctrl_c_ends_all_of_it_and_only_it(url: str, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve_local", "--port", str(port)],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        until = time.monotonic() + 180
        while "READY" not in log.read_text():
            if server.poll() is not None or time.monotonic() > until:
                pytest.fail(log.read_text())
            time.sleep(0.3)
        assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in log.read_text()
        chat = {"model": "stepdial-tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=chat, timeout=30).status_code == 200
        started = psutil.Process(server.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in started)
    finally:
        asked = time.monotonic()
        server.send_signal(signal.SIGINT)
        status = server.wait(60)
    assert time.monotonic() - asked < LIMIT_S
    assert status == 0
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    assert port_is_free(port)
    assert httpx.get(f"{url}/ready", timeout=10).status_code == 200, "the other cluster on this machine lives on"
