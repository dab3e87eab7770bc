"""A stream on its way from one replica to another. Planning, board and mover are real, replicas follow a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from ray.serve.exceptions import RequestCancelledError

import deployments.answering as module
from deployments.answering import Answering
from deployments.errors import ApiError
from deployments.job import End, Text
from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.messages import Done, Message, NotInTime, Piece, ReplicaRequest
from deployments.metrics import RouterMetrics
from deployments.moving import Mover
from deployments.openai_types import ChatCompletionRequest
from deployments.planning import Planning
from deployments.settings import AppArgs
from engine.events import Spent

if TYPE_CHECKING:
    from deployments.router import Router

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Reverse this list:\nhouse\nbottle"}], "max_tokens": 8}
PLANNING = Planning(AppArgs())


class Stream:
    """What a replica says, one message after the other; after the last one it says nothing until it is cancelled."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[Message]:
        for message in self.messages:
            yield message
            await asyncio.sleep(0)
        await self.cancelled.wait()
        raise RequestCancelledError


class Cluster:
    """A `Router` as `Answering` sees it, whose replicas follow a script: (replica, what it says) a question."""

    def __init__(self, script: list[tuple[str, list[Message]]]) -> None:
        self.script = iter(script)
        self.asked: list[ReplicaRequest] = []
        self.planning, self.tokenizer = PLANNING, PLANNING.tokenizer
        self.args, self.metrics, self.mover = PLANNING.args, METRICS, Mover()
        self.handle = SimpleNamespace(generate=SimpleNamespace(remote=self._generate))

    def _generate(self, request: ReplicaRequest) -> Stream:
        replica, messages = next(self.script)
        self.asked.append(request)
        BOARD.sent(replica, request.request_id, request.work_s, request.slots)
        return Stream(messages)

    def end_ids(self, options: Any) -> set[int]:
        return set()

    def think_ids(self) -> None:
        return None

    async def find_replicas(self) -> None:
        return None


METRICS = RouterMetrics()


@pytest.fixture(autouse=True)
def _two_replicas(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    BOARD.keep_only({"old", "new"})
    BOARD.report(load("old"))
    BOARD.report(load("new"))
    yield
    BOARD.keep_only(set())


def load(replica: str) -> ReplicaLoad:
    """The old one has much to do, the new one nothing."""
    much = replica == "old"
    return ReplicaLoad(replica, at_s=time.monotonic(), queue_s=30.0 * much, sequences=20 * much)


def piece(replica: str, tokens: list[int]) -> Piece:
    return Piece(tokens, "".join(map(chr, tokens)), load(replica).to_dict(), Spent(forwards=len(tokens)))


def full(replica: str) -> NotInTime:
    return NotInTime(True, None, load(replica).to_dict())


def done(replica: str, tokens: int) -> Done:
    report = {"latency_ms": 1.0, "replica": replica, "plan": []}
    return Done("length", report, 20, tokens, 1.0, False, load(replica).to_dict())


def answering(cluster: Cluster) -> Answering:
    request = ChatCompletionRequest.model_validate(CHAT)
    return Answering(cast("Router", cluster), PLANNING.job(request, {}, "asked", time.perf_counter()))


async def read(one: Answering, move_after: int | None = None) -> tuple[list[int], End]:
    """The tokens and the end; it is told to move once so many tokens have come."""
    tokens: list[int] = []
    async for event in one.events():
        if isinstance(event, End):
            return tokens, event
        assert isinstance(event, Text)
        tokens += event.token_ids
        if move_after is not None and len(tokens) >= move_after:
            move_after = None
            assert one.move()
    raise AssertionError("the answer did not end")


async def test_who_finds_all_replicas_full_after_it_moved_waits_for_a_place() -> None:
    script: list[tuple[str, list[Message]]] = [
        ("old", [piece("old", [97, 98])]),
        ("new", [full("new")]),
        ("old", [full("old")]),
        ("new", [full("new")]),
        ("old", [piece("old", [99] * 6), done("old", 6)]),
    ]
    cluster = Cluster(script)
    tokens, end = await read(answering(cluster), move_after=2)
    assert tokens == [97, 98, *[99] * 6]
    assert end.completion_tokens == 8
    assert [len(request.prompt_token_ids) - len(cluster.asked[0].prompt_token_ids) for request in cluster.asked] == [
        0, 2, 2, 2, 2,
    ]  # fmt: skip
    assert all(request.options["max_tokens"] == 6 for request in cluster.asked[1:])


async def test_who_comes_new_is_refused_where_all_are_full() -> None:
    cluster = Cluster([("new", [full("new")]), ("old", [full("old")])])
    with pytest.raises(ApiError) as refused:
        await read(answering(cluster))
    assert refused.value.status == 429


async def until_cancelled(one: Answering, move_after: int, cancel_after: int) -> int:
    """Moves after so many tokens, and is cancelled by its caller after so many; returns how many came."""
    count = 0
    async for event in one.events():
        assert isinstance(event, Text)
        count += len(event.token_ids)
        if count == move_after:
            assert one.move()
        if count >= cancel_after:
            assert one._stream is not None
            one._stream.cancel()
    return count


@pytest.mark.parametrize("crossing", [False, True])
async def test_a_stream_whose_caller_leaves_is_told_apart_from_one_that_moves(crossing: bool) -> None:
    """`crossing`: it was told to move when the replica had refused it already, so that nothing was cancelled for it."""
    first: list[Message] = [piece("old", [97])]
    cluster = Cluster([("old", [*first, full("old")] if crossing else first), ("new", [piece("new", [98])])])
    one = answering(cluster)
    with pytest.raises(RequestCancelledError):
        await until_cancelled(one, move_after=1, cancel_after=2)
    assert len(cluster.asked) == 2
    assert one.course.moves == (not crossing)
    assert BOARD.place_of(one.key) is None
