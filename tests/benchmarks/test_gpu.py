"""The GPU benchmark, rehearsed on a CPU: all of its code but the timing on a device, and its floors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import ceilings, correctness_head, correctness_model, end_to_end, rivals
from benchmarks.gpu.bars import NOT_MEASURED
from benchmarks.gpu.breakdown import summed
from benchmarks.gpu.floors import Ceilings, attention_flops, forward_floor, row_flops, weight_bytes
from benchmarks.gpu.head_inputs import random_head, rules, unmask_arguments
from benchmarks.gpu.paged import Part, paged
from benchmarks.gpu.section import Section
from benchmarks.gpu.shapes import MODELS, TINY
from benchmarks.gpu.tables import table
from benchmarks.gpu.timing import Call, Clock, copies
from engine.checkpoint.config import ModelConfig
from engine.model.linear import Linear
from kernels.denoise_head import denoise_head
from kernels.overlap import VARIABLE
from kernels.row_statistics import Statistics
from kernels.unmask import unmask_torch
from tests.kernels.isolated import interpreted

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
H200 = Ceilings(bandwidth=4.3e12, rate=790e12)
"""What `performance.md` reckons with."""


def section() -> Section:
    return Section(torch.device("cpu"), tiny=True, ceilings=Ceilings(1e10, 1e11), ends_s=float("inf"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All sections, as `--device cpu --tiny` runs them."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    status = command.main(["--device", "cpu", "--tiny", "--minutes", "30", "--output", str(file)])
    found: dict[str, Any] = json.loads(file.read_text())
    errors = [error["traceback"] for part in found["sections"].values() for error in part["errors"]]
    assert errors == []
    wrong = [row for part in found["sections"].values() for row in part["rows"] if not row.get("passed", True)]
    assert wrong == []
    assert status == 0
    return found


def rows(report: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    part = report["sections"][name]
    assert part["left_out"] == []
    found = {row["name"]: row for row in part["rows"]}
    assert len(found) == len(part["rows"]), "row names are what bars are judged by"
    return found


def test_every_section_runs_in_order_and_the_head_says_on_what(report: dict[str, Any]) -> None:
    assert list(report["sections"]) == ["ceilings", "correctness", "kernels", "forward", "end_to_end", "breakdown"]
    assert report["device"]["type"] == "cpu"
    assert report["machine"]["torch"] == torch.__version__
    assert report["tiny"] is True
    assert "--tiny" in report["command"]


def test_ceilings_are_measured(report: dict[str, Any]) -> None:
    found = rows(report, "ceilings")
    assert found["copy"]["bytes_per_s"] == pytest.approx(found["copy"]["bytes"] / found["copy"]["ms"] * 1e3)
    assert found["product"]["flop_per_s"] > 0


def test_correctness_has_a_verdict_on_every_kernel_and_on_models(report: dict[str, Any]) -> None:
    found = rows(report, "correctness")
    assert all(row["passed"] is True for row in found.values())
    for words in ("norm", "swiglu", "rope and K/V", "reach attention, fixed", "unmask", "audit", "stepdial-tiny, ar"):
        assert any(name.startswith(words) for name in found), words
    for size in correctness_head.ROWS:
        assert f"head, {size} rows, bfloat16, sampled" in found
    assert found["14B-shaped layers, bf16 against float32"]["bound"] == correctness_model.GAP_BOUND
    one_rank, two_ranks = (found[f"stepdial-tiny, {name}"]["rows"] for name in ("ar", "two ranks by gloo"))
    assert two_ranks == one_rank * len(correctness_model.MODES)
    assert len([name for name in found if name.startswith("stepdial-tiny")]) == 1 + len(correctness_model.MODES)


def test_kernels_are_compared_with_both_of_torchs_forms(report: dict[str, Any]) -> None:
    for name, row in rows(report, "kernels").items():
        assert row["over_eager"] == pytest.approx(row["eager_ms"] / row["ours_ms"])
        if name.startswith("product "):
            continue
        assert row["over_compiled"] == pytest.approx(row["compiled_ms"] / row["ours_ms"])
    attention = report["sections"]["kernels"]["rows"][0]
    assert attention["name"] == "reach attention, 1 x 32 rows at 64"
    assert attention["bytes"] == 96 * TINY.kv_bytes_per_token("bfloat16") // TINY.num_layers
    measured = ceilings.measured(report["sections"]["ceilings"]["rows"])
    assert measured is not None
    assert attention["of_bandwidth"] == pytest.approx(
        attention["bytes"] / (attention["ours_ms"] / 1e3) / measured.bandwidth
    )


def test_forwards_are_held_against_the_floor(report: dict[str, Any]) -> None:
    measured = ceilings.measured(report["sections"]["ceilings"]["rows"])
    assert measured is not None
    found = rows(report, "forward")
    in_fp8 = {"tiny fp8, 1 x 40", "tiny fp8, 3 x 40"}
    assert set(found) == {"tiny, 1 x 40", "tiny, 1 x 70", "tiny, 3 x 40", "tiny, 3 x 70"} | in_fp8
    for name, row in found.items():
        floor = forward_floor(TINY, row["canvases"], row["context"], 32, name in in_fp8)
        assert row["floor_bytes"] == floor.bytes
        assert row["over_floor"] == pytest.approx(row["eager_ms"] / 1e3 / floor.seconds(measured))
        assert row["bound"] in ("memory", "compute")


def test_a_forward_is_broken_down(report: dict[str, Any]) -> None:
    (row,) = rows(report, "breakdown").values()
    assert row["name"] == "tiny, 1 x 40: its kernels"
    assert row["products_ms"] > 0
    assert row["launches"] >= len(row["kernels"]) == 10


def test_a_forward_is_told_apart_by_what_its_kernels_do() -> None:
    """Two run at once for 1 us, which counts once, 2 us lie between; kernels of the same name are one line."""
    spans = [
        ("nvjet_tst_64x32", 0.0, 10.0),
        ("_attention_kernel", 9.0, 5.0),
        ("_merge_kernel", 15.0, 1.0),
        ("nvjet_tst_64x32", 17.0, 2.0),
        ("at::native::index_kernel", 19.0, 3.0),
    ]
    row = summed(spans[::-1])
    found = {name: value for name, value in row.items() if isinstance(value, float) and value}
    want = {"products_ms": 0.012, "attention_ms": 0.005, "other_ms": 0.003, "between_ms": 0.002}
    assert found == pytest.approx(want)
    assert row["kernels"][0] == {"kernel": "nvjet_tst_64x32", "launches": 2, "ms": pytest.approx(0.012)}
    with pytest.raises(RuntimeError, match="no kernel"):
        summed([])


def test_modes_run_at_the_tokens_per_forward_that_were_forced(report: dict[str, Any]) -> None:
    found = rows(report, "end_to_end")
    assert len(found) == len(end_to_end.MODES) * (len(end_to_end.CONCURRENT) + 1)
    # Of 32 tokens AR's first comes from the prompt, and a diffusion block that is the last needs no look.
    short = {"ar": 32 / 31, "diffusion": 32 / 8, "diffusion by threshold": 32.0, "self-speculation": 16.0}
    for mode, forced in short.items():
        for concurrency in end_to_end.CONCURRENT:
            row = found[f"engine, {mode}, {concurrency}"]
            assert row["tokens_per_forward"] == pytest.approx(forced, rel=0.01)
            assert 0 < row["waiting"] < 1
            assert row["tokens_per_s"] > 0
        assert found[f"reference, {mode}"]["tokens_per_s"] > 0


def test_a_rehearsal_measures_no_bar(report: dict[str, Any]) -> None:
    assert len(report["bars"]) > 20
    assert {bar["passed"] for bar in report["bars"]} == {NOT_MEASURED}
    assert {bar["value"] for bar in report["bars"]} == {None}


@pytest.mark.parametrize("name", ["3B", "8B", "14B"])
def test_shapes_are_those_of_the_released_checkpoints(name: str) -> None:
    released = ModelConfig.from_dir(CHECKPOINTS / f"{name.lower()}-instruct")
    mine = MODELS[name]
    for field in fields(ModelConfig):
        if field.name not in ("architectures", "pad_token_id", "bos_token_id"):
            assert getattr(mine, field.name) == getattr(released, field.name), field.name


@pytest.mark.parametrize(
    ("name", "gigabytes", "attention_megaflop", "kv_bytes"),
    [("3B", 6.86, 0.426, 106_496), ("8B", 15.91, 0.557, 139_264), ("14B", 25.67, 0.655, 163_840)],
)
def test_constants_are_those_of_performance_1_1(
    name: str, gigabytes: float, attention_megaflop: float, kv_bytes: int
) -> None:
    """8B is 15.905, which is rounded up there from rounded parts."""
    config = MODELS[name]
    assert weight_bytes(config) / 1e9 == pytest.approx(gigabytes, abs=0.006)
    assert row_flops(config) / 1e9 == pytest.approx(gigabytes, abs=0.006)
    assert attention_flops(config) / 1e6 == pytest.approx(attention_megaflop, abs=0.0005)
    assert config.kv_bytes_per_token("bfloat16") == kv_bytes


@pytest.mark.parametrize(
    ("name", "canvases", "context", "milliseconds"),
    [
        ("3B", 1, 512, 1.61),
        ("3B", 32, 512, 9.19),
        ("8B", 1, 512, 3.72),
        ("8B", 6, 4096, 4.50),
        ("8B", 32, 4096, 23.6),
        ("8B", 8, 32_768, 12.2),
        ("14B", 1, 512, 5.99),
        ("14B", 32, 512, 33.7),
        ("14B", 64, 512, 67.5),
    ],
)
def test_floors_are_those_of_performance_1_3(name: str, canvases: int, context: int, milliseconds: float) -> None:
    seconds = forward_floor(MODELS[name], canvases, context, 32).seconds(H200)
    assert seconds * 1e3 == pytest.approx(milliseconds, rel=0.004)


def test_rivals_compute_what_the_kernels_do() -> None:
    part = section()
    hidden, weight = random_head(part, TINY, 64, torch.float32)
    known = denoise_head(hidden, weight, rules(part, TINY, 64, sampled=False))
    tokens, confidence, entropy, margin = rivals.statistics(hidden @ weight.t(), TINY.mask_token_id, None)
    assert torch.equal(tokens, known.tokens)
    for mine, theirs in ((confidence, known.confidence), (entropy, known.entropy), (margin, known.margin)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    canvas, masked, *rest = unmask_arguments(part, TINY, 2, 32)
    both = [[canvas.clone(), masked.clone(), tokens.view(2, 32), confidence.view(2, 32), *rest] for _ in range(2)]
    plain, rival = unmask_torch(*both[0]), rivals.unmask(*both[1])
    assert torch.equal(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])
    assert not torch.equal(both[0][1], masked)
    for mine, theirs in zip(rival, (plain.masks_left, plain.first_stop, plain.done), strict=True):
        assert torch.equal(mine, theirs)


def test_the_rivals_attention_is_the_same_attention() -> None:
    batch = paged(section(), TINY, [Part(70, 32, False)] * 3, torch.float32)
    slots = torch.stack([batch.slots(index) for index in range(3)])
    query = batch.query.view(3, 32, TINY.num_heads, TINY.head_dim)
    rival = rivals.attention(query, batch.kv[0], slots, batch.scale).transpose(1, 2)
    torch.testing.assert_close(rival.reshape(96, -1).double(), batch.attend_double(), rtol=1e-4, atol=1e-5)


def test_kernels_are_called_as_they_want_to_be() -> None:
    interpreted(Path(__file__).with_name("interpreted_gpu.py"), least=7)


class GraphClock(Clock):
    """A GPU's clock on which every call of a graph takes `each_ms`, and the graph itself 0.004 ms."""

    cuda = True
    each_ms = 0.001

    def _graph_ms(self, calls: Sequence[Call]) -> float:
        assert [call() for call in calls] == [0, 1, 2, 3] * (len(calls) // 4)
        return 0.004 + self.each_ms * len(calls)

    def l2_bytes(self) -> int:
        return 50_000_000


@pytest.mark.parametrize(("each_ms", "calls"), [(0.001, 256), (0.1, 12), (1.0, 4)])
def test_short_kernels_fill_a_graph(each_ms: float, calls: int) -> None:
    clock = GraphClock(torch.device("cpu"))
    clock.each_ms = each_ms
    found = clock.kernel_ms([lambda index=index: index for index in range(4)])
    assert found == pytest.approx(each_ms + 0.004 / calls)


def test_cold_inputs_are_four_times_l2_together_if_there_are_not_too_many() -> None:
    clock = GraphClock(torch.device("cpu"))
    assert [copies(clock, size) for size in (1_000_000, 60_000_000, 10**9)] == [128, 4, 1]


def test_the_checks_notice_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_token(*arguments: Any) -> Statistics:
        known = denoise_head(*arguments)
        known.tokens[3] = (known.tokens[3] + 1) % TINY.vocab_size
        return known

    monkeypatch.setattr(correctness_head, "denoise_head", other_token)
    assert not correctness_head.exact(section(), torch.float32, 17, sampled=False)["passed"]
    assert not correctness_head.exact(section(), torch.float32, 17, sampled=True)["passed"]
    assert not correctness_head.close(section(), 64)["passed"]


class Recorded:
    """Stands for a CUDA graph: runs the call again, into the same result. Overlapping ones may read too early."""

    def __init__(self, call: Callable[[], torch.Tensor], hasty: bool) -> None:
        self.call, self.result, self.hasty = call, call(), hasty and os.environ[VARIABLE] == "1"
        self.before = self.result.clone()

    def replay(self) -> None:
        fresh = self.call()
        self.result.copy_(self.before if self.hasty else fresh)
        self.before = fresh


@pytest.mark.parametrize("hasty", [False, True])
def test_the_check_of_overlap_notices_what_is_read_too_early(hasty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(call: Callable[[], torch.Tensor]) -> tuple[Recorded, torch.Tensor]:
        made = Recorded(call, hasty)
        return made, made.result

    monkeypatch.setitem(correctness_model.MODELS, "14B", TINY)
    monkeypatch.setattr(correctness_model, "recorded", record)
    monkeypatch.setattr(correctness_model, "REPLAYS", 6)
    row = correctness_model.overlapping(section(), Linear, 2)
    assert row["rows"] == 6 * 64
    assert row["passed"] is not hasty
    assert (row["other_rows"] > 0) is hasty
    assert VARIABLE not in os.environ


def test_rows_with_the_same_columns_share_their_head() -> None:
    lines = table([{"name": "a", "ms": 1.25}, {"name": "bcd", "ms": None}, {"name": "e", "passed": False, "more": []}])
    assert lines == ["name  ms  ", "a     1.25", "bcd   -   ", "name  passed", "e     NO    "]
