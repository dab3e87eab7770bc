"""A small HTTP server that speaks the API's streams at known times, to test the load generator itself.

`python -m tests.locustfiles.sse_server PORT` refuses `realtime` (429), breaks off `batch` in the middle, fails `flex`
(500), and answers everything else in three blocks, `GAP_S` apart, rightly where a list is to be reversed.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIRST_S, GAP_S = 0.10, 0.15
SLO_MS = 5000
METRICS = """\
# TYPE stepdial_engine_queue_seconds gauge
stepdial_engine_queue_seconds{replica="a"} 0.5
stepdial_engine_queue_seconds{replica="b"} 0.25
# TYPE stepdial_engine_busy_seconds_total counter
stepdial_engine_busy_seconds_total{replica="a"} 1.0
"""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.whole(200, METRICS, "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tier = body.get("service_tier", "default")
        if tier == "realtime" or body.get("latency_slo_ms", SLO_MS) < 1:
            self.error(429, "slo_infeasible_under_load")
        elif tier == "flex":
            self.error(500, "internal_error")
        else:
            self.stream(tier, body)

    def error(self, status: int, code: str) -> None:
        error = {"message": "said no", "type": "error", "param": None, "code": code, "smallest_feasible_slo_ms": 77}
        self.whole(status, json.dumps({"error": error}), "application/json")

    def whole(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, tier: str, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        answer = answer_to(body["messages"][-1]["content"])
        for part in range(3):
            time.sleep(FIRST_S if part == 0 else GAP_S)
            if tier == "batch" and part == 1:
                self.close_connection = True
                return
            third = -(-len(answer) // 3)
            self.event({"choices": [{"delta": {"content": answer[part * third : (part + 1) * third]}}]})
        said = {
            "tier": tier, "decoding": "diffusion", "denoise_steps": 6, "draft_steps": 0, "forwards": 10,
            "accelerator_ms": 20.0, "slo_ms": SLO_MS, "slo_met": True, "predicted_p95_ms": 450, "queue_ms": 1.0,
            "expected_quality": 0.5, "latency_ms": 400.0,
            "plan": [{"from_token": 0, "decoding": "diffusion", "block_length": 8, "refinement_steps": 2}],
        }  # fmt: skip
        self.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 30}, "stepdial": said})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(data)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def answer_to(prompt: str) -> str:
    """Right for a list to reverse (what follows the first line, last line first), wrong for everything else."""
    first, *lines = prompt.split("\n")
    return "\n".join(reversed(lines)) if first.startswith("Reverse") else "wrong"


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
