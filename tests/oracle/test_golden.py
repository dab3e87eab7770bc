"""All golden cases through the engine in float32: alone, all in one batch, and through `run-batch`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.llm import LLM, Output
from engine.request import GenerationOptions
from tests.oracle.golden_cases import CASES, EOS, GOLDEN, MASK, Expected, case_name, expected, options_of
from tests.oracle.random_model import segment

CONFIG = EngineConfig(dtype="float32", threads=1, kv_tokens=40_000)


@dataclass
class Trace:
    """What an engine did for one case, as its observer saw it."""

    canvases: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    output: Output = field(default_factory=Output)


def trace(llm: LLM, cases: list[dict]) -> list[Trace]:
    """Answers all `cases` in one batch."""
    seen: dict[str, Trace] = defaultdict(Trace)

    def observe(sequence: str, kind: str, tokens: list[int | None]) -> None:
        if kind == "draft":
            seen[sequence].canvases.append([MASK if token is None else token for token in tokens])
        else:
            seen[sequence].accepted.append(len(tokens))

    llm.engine.core.postprocessor.observer = observe
    options = [GenerationOptions(**options_of(case)) for case in cases]
    outputs = llm.generate([case["prompt"] for case in cases], options, progress=False)
    # Names count up over the engine's life, so those of this batch end with the latest.
    last = max((int(name.rsplit("-", 1)[1]) for name in seen), default=0)
    first = 0 if len(cases) > 1 else last
    traces = [seen[f"sequence-{first + place}"] for place in range(len(cases))]
    for one, output in zip(traces, outputs, strict=True):
        one.output = output
    return traces


@pytest.fixture(scope="module")
def alone() -> list[Trace]:
    llm = LLM(GOLDEN, CONFIG.model_copy(update={"prefix_reuse": False}))
    return [trace(llm, [case])[0] for case in CASES]


@pytest.fixture(scope="module")
def together() -> list[Trace]:
    return trace(LLM(GOLDEN, CONFIG), CASES)


@pytest.fixture(scope="module")
def batch_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("batch")
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    lines = [
        {"id": f"case-{i}", "prompt_token_ids": case["prompt"], **options_of(case)} for i, case in enumerate(CASES)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "engine.cli", "run-batch", "--model", str(GOLDEN), "--input", str(source)]
    done = subprocess.run(
        [*command, "--output", str(target), "--dtype", "float32", "--threads", "1"],
        capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in target.read_text().splitlines()]


def check(got: Trace, index: int) -> None:
    case, wanted = CASES[index], expected(CASES[index])
    report = got.output.report
    assert report is not None
    answer = Expected(
        got.output.token_ids,
        str(got.output.finish_reason),
        report.denoise_steps,
        report.draft_steps,
        report.forwards,
    )
    assert answer == wanted
    assert report.completion_tokens == len(wanted.token_ids)
    if "accepted" in case:
        assert got.accepted == case["accepted"]
    if "canvases" in case:
        assert len(got.canvases) == wanted.denoise_steps
        # The golden canvases are those of the first six steps, of which the engine leaves out that of an EOS seed.
        shown = case["canvases"][: wanted.denoise_steps]
        assert got.canvases[: len(shown)] == shown


@pytest.mark.parametrize("index", range(len(CASES)), ids=case_name)
def test_alone(alone: list[Trace], index: int) -> None:
    check(alone[index], index)


@pytest.mark.parametrize("index", range(len(CASES)), ids=case_name)
def test_all_in_one_batch(together: list[Trace], index: int) -> None:
    check(together[index], index)


@pytest.mark.parametrize("index", range(len(CASES)), ids=case_name)
def test_run_batch(batch_rows: list[dict], index: int) -> None:
    row, wanted = batch_rows[index], expected(CASES[index])
    assert row["id"] == f"case-{index}"
    assert row["error"] is None
    assert row["token_ids"] == wanted.token_ids
    assert (row["finish_reason"], row["denoise_steps"], row["forwards"]) == (
        wanted.finish_reason,
        wanted.denoise_steps,
        wanted.forwards,
    )


def test_every_way_to_end_is_among_the_cases() -> None:
    ends = {(case["mode"], expected(case).finish_reason) for case in CASES}
    assert ends == {(mode, reason) for mode in ("ar", "diffusion", "self_speculation") for reason in ("stop", "length")}
    overshot = [case for case in CASES if len(case["output"]) > case["max_new_tokens"]]
    assert overshot
    eos_seeds = [
        case
        for case in CASES
        if case["mode"] == "diffusion" and case["output"][-1] == EOS and len(case["output"]) % case["block_length"] == 1
    ]
    assert eos_seeds


@torch.inference_mode()
@pytest.mark.parametrize("index", [i for i, case in enumerate(CASES) if case["mode"] == "ar"], ids=case_name)
def test_first_logits(index: int, golden_llm: LLM) -> None:
    executor = golden_llm.engine.core.executor
    prompt = CASES[index]["prompt"]
    logits = executor.run(executor.batch([segment(prompt, 0, True, [len(prompt) - 1])]))[0]
    values, ids = logits.topk(5)
    assert ids.tolist() == [token for token, _ in CASES[index]["first_logits_top5"]]
    golden = torch.tensor([value for _, value in CASES[index]["first_logits_top5"]])
    torch.testing.assert_close(values, golden, atol=1.1e-4, rtol=0)


@pytest.fixture(scope="module")
def golden_llm() -> LLM:
    return LLM(GOLDEN, CONFIG)
