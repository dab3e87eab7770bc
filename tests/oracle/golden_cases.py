"""The golden cases: tokens, canvases and accepted lengths of the released loops on a small trained checkpoint.

`tests/data/golden/README.md` says how they were made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
EOS, MASK = 11, 100


@dataclass(frozen=True, slots=True)
class Expected:
    """What a server must give for a case, derived from what the released loop gave.

    The released loop commits its last block, which the engine does not need, and opens another block for a seed that is
    EOS, which costs it one denoise step and one commit; self-speculation overshoots `max_new_tokens`, a server cuts.

    Attributes:
        forwards: real ones, the prefill included; the released `nfe` of diffusion leaves it out.
    """

    token_ids: list[int]
    finish_reason: str
    denoise_steps: int
    draft_steps: int
    forwards: int


def expected(case: dict[str, Any]) -> Expected:
    """Tokens and counts that follow from a case's tokens, nfe and accepted lengths."""
    tokens = case["output"][: case["max_new_tokens"]]
    reason = "stop" if tokens[-1] == EOS else "length"
    if case["mode"] == "ar":
        return Expected(tokens, reason, 0, 0, len(tokens))
    if case["mode"] == "self_speculation":
        rounds = len(case["accepted"])
        # nfe = prefill + drafts + one verify per round (contract 4.4).
        return Expected(tokens, reason, 0, case["nfe"] - 1 - rounds, case["nfe"])
    length = case["block_length"]
    blocks = -(-len(tokens) // length)
    # nfe = denoise steps + one commit per block (contract 4.1).
    denoise, commits = case["nfe"] - blocks, blocks - 1
    if tokens[-1] == EOS and len(tokens) % length == 1 % length:
        denoise -= 1
    return Expected(tokens, reason, denoise, 0, 1 + denoise + commits)


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    """The request fields of a case, as in `run-batch`."""
    fields: dict[str, Any] = {"max_tokens": case["max_new_tokens"], "temperature": 0, "decoding": case["mode"]}
    if case["mode"] != "ar":
        fields |= {"block_length": case["block_length"], "threshold": case["threshold"]}
    return fields


def case_name(index: int) -> str:
    case = CASES[index]
    length, threshold = case.get("block_length", 1), case.get("threshold")
    return f"{index}-{case['mode']}-block{length}-threshold{threshold}"
