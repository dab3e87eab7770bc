"""Time from `make serve`'s command to its first answer, and from Ctrl-C to its end; nothing is installed in between.

`python -m benchmarks.serve_start` prints both and writes `benchmarks/results/serve_start.json`.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import httpx

from benchmarks.command import command_parser, parsed, write_report

CHAT = {
    "model": "stepdial-tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 16,
    "temperature": 0,
}
RUNS = 3
LIMIT_S = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts and ends `make serve`'s process a few times."""
    options = parsed(command_parser("serve_start", __doc__), arguments)
    runs = [one_run() for _ in range(RUNS)]
    for run in runs:
        print(f"first answer after {run['first_answer_s']:.1f} s, ended {run['stop_s']:.1f} s after Ctrl-C")
    write_report(options, {"runs": runs})


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
