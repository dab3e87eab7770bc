"""`make serve`: Stepdial on a local Ray cluster of its own, in the foreground, through `serve run`.

Renders a copy of a Serve config with the port (`serve run` has no flag for it), starts a cluster that nobody else
uses, waits until a replica answers, and on Ctrl-C ends what it started and nothing else. The routers listen on the port
themselves (`listener.py`); Serve's proxy gets one that is free.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from deployments.environment import cluster_environment

ROOT = Path(__file__).parent.parent
OBJECT_STORE_BYTES = 200 << 20
STOP_S = 12.0
POLL_S = 0.3
OWN_PORT_MS = 1.0
"""p95 of what lies between the client and a router that listens itself, milliseconds."""


class Stop(Exception):
    """Ctrl-C, or a polite request to end."""


def main() -> int:
    """Runs until Ctrl-C. Returns the exit status."""
    options = arguments()
    if not port_is_free(options.port):
        print(f"port {options.port} on 127.0.0.1 is taken; choose another: make serve PORT={options.port + 1}")
        return 1
    os.environ.update(cluster_environment(RAY_USAGE_STATS_ENABLED="0", RAY_LOG_TO_DRIVER="0"))
    os.environ.pop("RAY_ADDRESS", None)
    signal.signal(signal.SIGINT, raise_stop)
    signal.signal(signal.SIGTERM, raise_stop)
    try:
        with tempfile.TemporaryDirectory(prefix="stepdial-") as directory:
            config = render(options.config, options.port, Path(directory))
            return run(config, options.port, options.then)
    except Stop:
        return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stepdial on this machine, until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000)")
    parser.add_argument("--config", type=Path, default=ROOT / "cluster_configs" / "laptop.yaml", help="Serve config")
    parser.add_argument("--then", nargs=argparse.REMAINDER, help="a command to run when ready; its end ends all")
    return parser.parse_args()


def render(config: Path, port: int, directory: Path) -> Path:
    """A copy of `config` whose routers listen on 127.0.0.1:`port`."""
    data: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    data["http_options"] = {**data.get("http_options", {}), "host": "127.0.0.1", "port": free_port()}
    for application in data["applications"]:
        given = application.get("args", {})
        application["args"] = {
            "proxy_overhead_ms": OWN_PORT_MS,
            **given,
            "router_host": "127.0.0.1",
            "router_port": port,
        }
    copy = directory / config.name
    copy.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return copy


def run(config: Path, port: int, then: list[str] | None) -> int:
    """Starts cluster and `serve run`, waits for Ctrl-C or the end of `then`, and ends both."""
    begun = time.monotonic()
    print("starting a local Ray cluster ...", flush=True)
    import ray  # after the environment is set, which Ray reads when it is imported

    child: subprocess.Popen[bytes] | None = None
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
        )
        address = ray.get_runtime_context().gcs_address
        serve_command = Path(sys.executable).parent / "serve"
        # A session of its own: Ctrl-C reaches it through us, once.
        child = subprocess.Popen(
            [str(serve_command), "run", "--address", address, "--app-dir", str(ROOT), str(config)],
            cwd=ROOT,
            start_new_session=True,
        )
        application = yaml.safe_load(config.read_text(encoding="utf-8"))["applications"][0]
        if not wait_until_ready(child, port, application["name"]):
            return 1
        announce(port, application, time.monotonic() - begun)
        return subprocess.call(then, cwd=ROOT) if then else child.wait()
    finally:
        # From here on a second Ctrl-C must not leave half a cluster behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stopping ...", flush=True)
        if child is not None:
            end(child)
        ray.shutdown()
        print("stopped", flush=True)


def wait_until_ready(child: subprocess.Popen[bytes], port: int, application: str) -> bool:
    """Waits for the first replica; False, with the reason printed, when the deployment failed."""
    from ray import serve

    while True:
        if child.poll() is not None:
            print(f"`serve run` ended with status {child.returncode}")
            return False
        if answers(f"http://127.0.0.1:{port}/ready"):
            return True
        found = serve.status().applications.get(application)
        if found is not None and found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            print(f"the application is {found.status}: {found.message}")
            return False
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def announce(port: int, application: dict[str, Any], seconds: float) -> None:
    """Prints where Stepdial is and a line to try."""
    from deployments.settings import AppArgs

    name = AppArgs.model_validate(application.get("args", {})).served_name
    url = f"http://127.0.0.1:{port}"
    print(f"""
READY after {seconds:.0f} s: Stepdial serves {name} on {url} (Ctrl-C ends it)

Try:
  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "{name}", "temperature": 0, "max_tokens": 64, "decoding": "diffusion", "latency_slo_ms": 1000,
    "messages": [{{"role": "user", "content": "Reverse this list:\\nhouse\\nbottle\\nbridge\\nred\\nflute"}}]}}'
""", flush=True)  # fmt: skip


def end(child: subprocess.Popen[bytes]) -> None:
    """Lets `serve run` take the application down; kills it when that takes too long."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def raise_stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stop


if __name__ == "__main__":
    sys.exit(main())
