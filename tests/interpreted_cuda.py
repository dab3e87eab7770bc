"""The simulated GPU by itself, and the engine on it with its kernels interpreted, which gives the CPU's answers. Run by
`test_simulated_cuda.py` in a process of its own."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import graphs
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import RankFailed
from engine.graphs import recorded
from engine.group.leader import Group
from engine.group.wire import Kind
from engine.packing import fetched, moved
from kernels.activation import swiglu_torch, swiglu_triton
from kernels.switch import VARIABLE
from tests.engine.serving import PROMPTS, answer, last_layer_of_golden, load
from tests.simulated_cuda import CudaTensor, simulated
from tests.simulated_nccl import SimulatedNccl, nccl
from tests.simulated_rank import FAILS, TOKENS, SimulatedRank

SHORT = {"max_tokens": 6, "ignore_eos": True, "temperature": 0}
REQUESTS: list[dict[str, Any]] = [
    SHORT | {"decoding": "ar", "temperature": 0.9, "seed": 3},
    SHORT | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 4, "threshold": 0.9},
    SHORT | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 2, "threshold": None, "audit": "exact"},
    SHORT | {"decoding": "self_speculation", "block_length": 4},
    SHORT | {"decoding": "self_speculation", "block_length": 4, "temperature": 0.8, "seed": 8, "top_k": 3},
    SHORT | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 4, "remask": 0.5, "entropy_bound": 1.0},
]


def test_tensors_of_two_devices_do_not_meet() -> None:
    with simulated():
        there = torch.ones(3, 2, device="cuda")
        assert there.device.type == "cuda"
        assert torch.empty(2, device=there.device).is_cuda
        for wrong in (
            lambda: there + torch.ones(3, 2),
            lambda: torch.ones(3, 3) @ there,
            lambda: there.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
            lambda: swiglu_triton(torch.ones(4, 8)),
        ):
            with pytest.raises((RuntimeError, ValueError), match=r"same device|cannot be accessed"):
                wrong()


def test_it_computes_as_the_cpu_does() -> None:
    here = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    with simulated() as gpu:
        there = here.to("cuda")
        there[1:3, 4] = 7.0
        here[1:3, 4] = 7.0
        torch.testing.assert_close(swiglu_triton(there).cpu(), swiglu_torch(here))
        assert gpu.launches == 1
        narrow = swiglu_triton(there.bfloat16())
        torch.testing.assert_close(narrow.cpu().float(), swiglu_torch(here), atol=0.05, rtol=0.02)


def test_the_host_waits_where_it_asks_for_a_number() -> None:
    with simulated() as gpu:
        there = moved([torch.arange(4), torch.ones(2)], torch.device("cuda"))
        assert gpu.waits == 0
        first, second = fetched(there)
        assert gpu.waits == 1
        assert first.tolist() == [0, 1, 2, 3]
        assert second.tolist() == [1.0, 1.0]
        assert there[0].sum().item() == 6
        assert there[1].tolist() == [1.0, 1.0]
        assert gpu.waits == 3


def test_nobody_waits_while_a_graph_is_recorded() -> None:
    with simulated():
        there = torch.ones(3, device="cuda")
        for wrong in (lambda: there.sum().item(), lambda: there.cpu(), lambda: there.nonzero()):
            with pytest.raises(RuntimeError, match="capturing"):
                recorded(wrong)


def test_a_graph_keeps_the_numbers_of_the_host_and_sees_those_of_the_device() -> None:
    with simulated() as gpu:
        there, factor = torch.ones(2, 8, device="cuda"), 2

        def call() -> torch.Tensor:
            return swiglu_triton(there * factor)

        graph, result = recorded(call)
        factor = 3
        there.mul_(0.5)
        graph.replay()
        assert gpu.replays == 1
        torch.testing.assert_close(result.cpu(), swiglu_torch(torch.ones(2, 8)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return last_layer_of_golden(tmp_path_factory.mktemp("checkpoint"))


def on_the_cpu(
    checkpoint: Path, asked: list[tuple[list[int], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """The answers' tokens, from logits; then kernels run where there is a GPU, and few graphs are recorded."""
    monkeypatch.setenv(VARIABLE, "torch")
    plain = load(checkpoint, kv_tokens=2048, prefix_reuse=False)
    tokens = [one.token_ids for one in answer(plain, asked)]
    monkeypatch.setattr(graphs, "TOKENS", TOKENS)
    monkeypatch.setenv(VARIABLE, "auto")
    return tokens


@pytest.mark.parametrize("in_graphs", [False, True])
def test_the_answers_are_those_of_the_cpu(checkpoint: Path, in_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, then each by itself, which has its forwards in a row."""
    together = list(zip(PROMPTS, REQUESTS, strict=False))
    want = on_the_cpu(checkpoint, together, monkeypatch)
    with simulated() as gpu:
        engine = load(checkpoint, kv_tokens=2048, prefix_reuse=False, device="cuda", cuda_graphs=in_graphs)
        assert isinstance(engine.core.executor.kv, CudaTensor)
        assert [one.token_ids for one in answer(engine, together)] == want
        assert (gpu.replays > 0) == in_graphs
        for request, expected in zip(together, want, strict=True):
            gpu.waits = 0
            (one,) = answer(engine, [request])
            assert one.token_ids == expected
            # Rows with top-k are fetched, to be chosen from by the host; else it waits once, seldom for every forward.
            if not request[1].get("top_k"):
                often = 0.6 if request[1]["decoding"] in ("ar", "self_speculation") else 1.0
                assert gpu.waits <= often * one.report.forwards


TWO_RANKS = EngineConfig(
    device="cuda", dtype="float32", tp=2, cuda_graphs=True, threads=1, kv_tokens=2048, prefix_reuse=False
)


def test_two_ranks_in_graphs_give_the_answers_of_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU each, NCCL between them, inside the graphs and out."""
    fixed = SHORT | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 4, "threshold": None}
    some = list(zip(PROMPTS, [REQUESTS[0], REQUESTS[3], fixed, REQUESTS[1], REQUESTS[4]], strict=False))
    want = on_the_cpu(checkpoint, some, monkeypatch)
    said: list[Kind] = []
    tell = Group.tell

    def heard(self: Group, kind: Kind, payload: bytes | memoryview = b"") -> None:
        said.append(kind)
        tell(self, kind, payload)

    monkeypatch.setattr(Group, "tell", heard)
    with simulated() as gpu, nccl():
        engine = Engine.from_pretrained(checkpoint, TWO_RANKS, launcher=SimulatedRank)
        try:
            exchange = engine.core.executor.model.parallel._group
            assert isinstance(exchange, SimulatedNccl)
            assert [one.token_ids for one in answer(engine, some)] == want
            for place, in_a_row in ((0, Kind.LOOK), (1, Kind.LOOK), (2, Kind.AGAIN), (3, Kind.AGAIN)):
                gpu.waits = gpu.replays = 0
                said.clear()
                (one,) = answer(engine, some[place : place + 1])
                assert one.token_ids == want[place]
                assert gpu.replays == one.report.forwards > said.count(Kind.STEP)
                assert in_a_row in said
                # Only what has a threshold is looked at after every step.
                assert gpu.waits <= one.report.forwards * (1.0 if some[place][1].get("threshold") else 0.7)
            assert not exchange.aborted
            recorded_once = weakref.ref(engine.core.executor.graphs)
        finally:
            engine.close()
        assert recorded_once() is None, "NCCL waits for the end of the graphs"


def test_a_rank_that_cannot_record_is_reported(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "TOKENS", TOKENS)
    monkeypatch.setenv(VARIABLE, "auto")
    monkeypatch.setenv(FAILS, "1")
    aborted = threading.Event()
    monkeypatch.setattr(SimulatedNccl, "abort", lambda _: aborted.set())
    with simulated(), nccl(), pytest.raises(RankFailed, match=r"rank 1 of 2 failed: .*no memory is left for graphs"):
        Engine.from_pretrained(checkpoint, TWO_RANKS, launcher=SimulatedRank)
    assert aborted.wait(10), "what waits for it on the device ends"
