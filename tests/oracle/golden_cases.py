"""The golden cases: tokens, canvases and accepted lengths of the released loops on a small trained checkpoint.

`tests/data/golden/README.md` says how they were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
EOS, MASK = 11, 100


def case_name(index: int) -> str:
    case = CASES[index]
    length, threshold = case.get("block_length", 1), case.get("threshold")
    return f"{index}-{case['mode']}-block{length}-threshold{threshold}"
