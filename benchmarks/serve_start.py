"""Time from `make serve`'s command to its first answer, and from Ctrl-C to its end; nothing is installed in between.

`python -m benchmarks.serve_start` prints both and writes `benchmarks/results/serve_start.json`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.machine import machine

RESULT = Path(__file__).parent / "results" / "serve_start.json"
CHAT = {
    "model": "stepdial-tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 16,
    "temperature": 0,
}
RUNS = 3
LIMIT_S = 300


def main() -> None:
    """Starts and ends `make serve`'s process a few times."""
    runs = [one_run() for _ in range(RUNS)]
    for run in runs:
        print(f"first answer after {run['first_answer_s']:.1f} s, ended {run['stop_s']:.1f} s after Ctrl-C")
    report = {
        "command": "python -m benchmarks.serve_start",
        "machine": machine(),
        "load_average_after": os.getloadavg()[0],
        "runs": runs,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def one_run() -> dict[str, float]:
    """One start and end, seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.monotonic()
    server = subprocess.Popen([sys.executable, "-m", "deployments.serve_local", "--port", str(port)])
    try:
        first_answer_s = wait_for_answer(server, f"http://127.0.0.1:{port}/v1/chat/completions", begun)
    finally:
        asked = time.monotonic()
        server.send_signal(signal.SIGINT)
        server.wait()
    return {"first_answer_s": first_answer_s, "stop_s": time.monotonic() - asked}


def wait_for_answer(server: subprocess.Popen[bytes], url: str, begun: float) -> float:
    """Asks until the first answer."""
    while time.monotonic() - begun < LIMIT_S:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")
        try:
            if httpx.post(url, json=CHAT, timeout=30).status_code == 200:
                return time.monotonic() - begun
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"no answer within {LIMIT_S} s")


if __name__ == "__main__":
    main()
