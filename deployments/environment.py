"""The environment in which a cluster has to start: read by Ray and torch when they are imported."""

from __future__ import annotations

import os
from pathlib import Path

SERVE_ENV = Path(__file__).parent.parent / "cluster_configs" / "serve.env"


def cluster_environment(**more: str) -> dict[str, str]:
    """The variables of `cluster_configs/serve.env`, and `more`, that this process's environment does not set.

    `os.environ.update` them before Ray or torch are imported; processes started later inherit them.
    """
    lines = (line.strip() for line in SERVE_ENV.read_text(encoding="utf-8").splitlines())
    shipped = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value for name, value in {**shipped, **more}.items() if name not in os.environ}
