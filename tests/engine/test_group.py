"""Two ranks in two processes: the tokens of one, and a group that starts, fails and ends as one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Segment
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import CheckpointError, EngineStopped, RankFailed
from engine.events import Delta
from engine.group.flat_batch import decode_segments, encode_segments
from engine.group.subprocesses import ROOT, WorkerProcess
from engine.request import GenerationOptions
from engine.tiny.tasks import generate
from tests.engine.checkpoint.golden import write_copy
from tests.engine.serving import MODES, load
from tests.oracle.golden_cases import CASES, GOLDEN, expected, options_of
from tests.oracle.mixed_requests import engine as golden
from tests.oracle.mixed_requests import mixed_requests, run

TINY = ROOT / "engine" / "tiny" / "checkpoint"
REQUESTS = mixed_requests()


def directory_of(engine: Engine) -> Path:
    group = engine.core.executor.group
    assert group is not None
    return group.store.parent


def worker_in(directory: Path) -> psutil.Process:
    """The process that is rank 1 of the group that meets in `directory`."""
    [found] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][-2:] == [str(directory), "1"]
    ]
    return found


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Engine]:
    """The golden checkpoint on two ranks."""
    engine = golden(tp=2)
    yield engine
    worker = worker_in(directory_of(engine))
    engine.close()
    assert eventually(lambda: not worker.is_running(), 3), "a worker ends with its engine"


@st.composite
def batches(draw: st.DrawFn) -> list[Segment]:
    ids = st.integers(0, 2**40)
    made = st.builds(
        Segment,
        tokens=st.lists(ids, min_size=1, max_size=40),
        start=ids,
        causal=st.booleans(),
        drafted=st.booleans(),
        wanted=st.lists(ids, max_size=40),
        pages=st.lists(ids, max_size=9).map(lambda pages: array("q", pages)),
    )
    return draw(st.lists(made, max_size=6))


@given(batches())
@settings(max_examples=60)
def test_a_batch_comes_back_from_its_flat_form(batch: list[Segment]) -> None:
    flat = encode_segments(batch)
    assert decode_segments(flat) == batch
    numbers = 1 + sum(6 + len(one.tokens) + len(one.wanted) + len(one.pages) for one in batch)
    assert len(flat) == 8 * numbers


def test_a_mixed_batch_has_the_tokens_of_one_rank(two_ranks: Engine) -> None:
    """Every mode, greedy and sampled, drafts with the adapter: tokens and every canvas on the way."""
    alone = run(golden(), REQUESTS)
    for index, (mine, other) in enumerate(zip(run(two_ranks, REQUESTS), alone, strict=True)):
        where = f"request {index}: {REQUESTS[index].fields}"
        assert mine.token_ids == other.token_ids, where
        assert mine.canvases == other.canvases, where
        assert mine.report is not None
        assert other.report is not None
        assert mine.report.audit_logprob == pytest.approx(other.report.audit_logprob, abs=1e-4)


def test_a_request_has_the_same_bits_alone_and_in_a_batch_on_two_ranks(two_ranks: Engine) -> None:
    together = run(two_ranks, REQUESTS[:8])
    for index, request in enumerate(REQUESTS[:8]):
        assert run(two_ranks, [request])[0].bits == together[index].bits


def test_golden_cases_on_two_ranks(two_ranks: Engine) -> None:
    cases = CASES[::7]
    assert {case["mode"] for case in cases} == {"ar", "diffusion", "self_speculation"}
    requests = [(case["prompt"], GenerationOptions(**options_of(case)), None) for case in cases]
    tokens: list[list[int]] = [[] for _ in cases]
    two_ranks.core.postprocessor.observer = None
    for index, event in two_ranks.run_sync(requests):
        if isinstance(event, Delta):
            tokens[index] += event.token_ids
    assert tokens == [expected(case).token_ids for case in cases]


def test_logits_are_those_of_one_rank_to_1e_4(two_ranks: Engine) -> None:
    prompt = max((case["prompt"] for case in CASES), key=len)
    segment = Segment(prompt, 0, True, False, list(range(len(prompt))), list(range(1, 2 + len(prompt) // 32)))
    logits = [engine.core.executor.run(engine.core.executor.batch([segment])) for engine in (golden(), two_ranks)]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)
    assert not torch.equal(logits[1], logits[0]), "the sums have another order"


def test_the_shipped_model_has_the_same_tokens_on_two_ranks() -> None:
    tasks = list(generate("test", 6, seed=11))
    answers = []
    for tp in (1, 2):
        engine = load(TINY, tp=tp)
        try:
            assert engine.tokenizer is not None
            prompts = [engine.tokenizer.render_chat(task.messages) for task in tasks]
            options = [
                GenerationOptions(temperature=0.6 * (place % 2), seed=place, max_tokens=40, **mode)
                for place, mode in enumerate(MODES.values())
            ]
            requests = [(prompt, one, None) for prompt in prompts for one in options]
            tokens: list[list[int]] = [[] for _ in requests]
            for index, event in engine.run_sync(requests):
                if isinstance(event, Delta):
                    tokens[index] += event.token_ids
            answers.append(tokens)
        finally:
            engine.close()
    assert answers[1] == answers[0]


def test_run_batch_takes_the_number_of_ranks(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    cases = CASES[:3]
    source.write_text("".join(json.dumps({"prompt_token_ids": c["prompt"], **options_of(c)}) + "\n" for c in cases))

    def stepdial(tp: int) -> subprocess.CompletedProcess[str]:
        target = tmp_path / f"out-{tp}.jsonl"
        command = [sys.executable, "-m", "engine.cli", "run-batch", "--model", str(GOLDEN), "--input", str(source)]
        return subprocess.run(
            [*command, "--output", str(target), "--threads", "1", "--tp", str(tp)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = stepdial(2)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out-2.jsonl").read_text().splitlines()]
    assert [row["token_ids"] for row in rows] == [expected(case).token_ids for case in cases]
    refused = stepdial(4)
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: tp is 4, but 4 ranks do not divide num_key_value_heads (2); allowed for this checkpoint: 1, 2\n"
    )


def test_a_waiting_worker_uses_no_cpu(two_ranks: Engine) -> None:
    run(two_ranks, REQUESTS[:1])
    worker = worker_in(directory_of(two_ranks))
    before = sum(worker.cpu_times()[:2])
    time.sleep(1.0)
    assert sum(worker.cpu_times()[:2]) - before <= 0.05


async def test_a_worker_that_dies_ends_streams_and_health_at_once() -> None:
    engine = golden(tp=2)
    engine.start()
    try:
        worker = worker_in(directory_of(engine))
        options = GenerationOptions(decoding="ar", max_tokens=400, min_tokens=400)
        async with aclosing(engine.generate(CASES[0]["prompt"], options)) as stream:
            await anext(stream)
            worker.kill()
            killed = time.monotonic()
            with pytest.raises(EngineStopped, match=r"rank 1 of 2 failed: its process was killed \(signal 9\)"):
                await _exhaust(stream)
        assert time.monotonic() - killed < 2
        assert not engine.running
        with pytest.raises(EngineStopped, match="rank 1 of 2 failed"):
            await anext(engine.generate(CASES[0]["prompt"], options))
    finally:
        engine.close()


async def _exhaust(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


async def test_a_worker_that_dies_while_idle_is_noticed() -> None:
    engine = golden(tp=2)
    engine.start()
    try:
        worker = worker_in(directory_of(engine))
        assert engine.running
        worker.kill()
        assert await asyncio.to_thread(eventually, lambda: not engine.running, 2)
    finally:
        engine.close()


def test_an_engine_without_a_loop_says_which_rank_died() -> None:
    engine = golden(tp=2)
    group = engine.core.executor.group
    assert group is not None
    told: list[str] = []
    for name in ("one", "other"):
        group.watch(lambda error, name=name: told.append(f"{name}: {error}"))
    try:
        worker_in(directory_of(engine)).kill()
        with pytest.raises(RankFailed, match="rank 1 of 2"):
            run(engine, REQUESTS[:1])
        assert eventually(lambda: len(told) == 2, 2)
        assert [each.split(": ")[0] for each in told] == ["other", "one"], "who asked last is told first"
        group.watch(lambda error: told.append(f"late: {error}"))
        assert told[2].startswith("late: rank 1 of 2 failed"), "at once"
    finally:
        engine.close()


@pytest.mark.parametrize("busy", [True, False])
def test_a_rank_0_that_dies_takes_its_worker_along(busy: bool) -> None:
    program = f"""
import sys, time
from tests.oracle.mixed_requests import engine, mixed_requests, run
two = engine(tp=2)
print(two.core.executor.group.store.parent, flush=True)
while {busy}:
    run(two, mixed_requests())
time.sleep(60)
"""
    leader = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert leader.stdout is not None
        directory = Path(leader.stdout.readline().strip())
        assert directory.is_relative_to(tempfile.gettempdir())
        worker = worker_in(directory)
        time.sleep(0.5)
    finally:
        leader.kill()
        leader.wait()
    assert eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 4)
    assert not directory.exists(), "nothing is left behind"


class Script(WorkerProcess):
    """A worker process that runs a program of the test's instead."""

    program = ""

    def __init__(self, directory: str, rank: int) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", self.program, directory, str(rank)], cwd=ROOT)


def start_with(program: str) -> Engine:
    launcher = type("Started", (Script,), {"program": program})
    config = EngineConfig(dtype="float32", threads=1, kv_tokens=1024, tp=2)
    return Engine.from_pretrained(GOLDEN, config, launcher=launcher)


def test_a_worker_that_cannot_load_is_reported_in_one_message(tmp_path: Path) -> None:
    """As where a worker sees other files than rank 0."""
    broken = write_copy(tmp_path / "broken", change=lambda tensors: tensors.pop("encoder.norm.weight"))
    program = f"""
import sys
from dataclasses import replace
from engine.group import worker
read = worker.RankSpec.from_bytes
worker.RankSpec.from_bytes = staticmethod(lambda data: replace(read(data), path={str(broken)!r}))
worker.run_worker(sys.argv[1], int(sys.argv[2]))
"""
    with pytest.raises(RankFailed) as caught:
        start_with(program)
    message = str(caught.value)
    assert message.startswith(f"rank 1 of 2 could not start: {broken} cannot be loaded (1 problem):")
    assert "encoder.norm.weight is missing; expected [96]" in message


def test_a_worker_that_ends_before_it_joins_is_reported() -> None:
    with pytest.raises(RankFailed, match="rank 1 of 2 could not start: its process ended with status 3"):
        start_with("raise SystemExit(3)")


def test_wrong_files_are_refused_before_a_worker_starts(tmp_path: Path) -> None:
    broken = write_copy(tmp_path / "broken", change=lambda tensors: tensors.pop("encoder.norm.weight"))

    def launcher(directory: str, rank: int) -> WorkerProcess:
        raise AssertionError("a worker was started")

    with pytest.raises(CheckpointError, match=r"encoder.norm.weight is missing"):
        Engine.from_pretrained(broken, EngineConfig(tp=2), launcher=launcher)


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tp is 4, but .*; allowed for this checkpoint: 1, 2"):
        Engine.from_pretrained(GOLDEN, EngineConfig(tp=4))


def test_a_socket_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(RankFailed, match=r"no socket for the ranks in .*; set TMPDIR"):
        golden(tp=2)
    assert list(deep.iterdir()) == []
