"""A router's own port: shared, patient with open answers, and done with clients that have gone."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from deployments.listener import Listener
from deployments.serve_local import free_port


class Slow:
    """An application whose answers end when they are let go, or when they are cancelled."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        routes = [Route("/", self.answer, methods=["GET", "POST"]), Route("/stream", self.stream, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        await self._wait()
        return PlainTextResponse(f"{len(body)} bytes")

    async def stream(self, request: Request) -> Response:
        await request.body()

        async def parts():
            yield "first\n"
            await self._wait()
            yield "last\n"

        return StreamingResponse(parts())

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def listener(slow: Slow):
    listener = Listener(slow.app, "127.0.0.1", free_port(), drain_s=5)
    await listener.start()
    yield listener
    slow.let_go.set()
    await listener.stop()


@pytest.mark.parametrize("path", ["/", "/stream"])
async def test_a_client_that_leaves_ends_its_answer(slow: Slow, listener: Listener, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as client:
        asking = asyncio.create_task(client.post(path, content=b"x" * 300_000))
        await asyncio.wait_for(slow.begun.wait(), 5)
        asking.cancel()
        await asyncio.wait((asking,))
    await asyncio.wait_for(slow.cancelled.wait(), 5)


@pytest.mark.parametrize(("path", "text"), [("/", "300000 bytes"), ("/stream", "first\nlast\n")])
async def test_stopping_waits_for_open_answers_and_takes_no_new_ones(
    slow: Slow, listener: Listener, path: str, text: str
) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as client:
        asking = asyncio.create_task(client.post(path, content=b"x" * 300_000))
        await asyncio.wait_for(slow.begun.wait(), 5)
        stopping = asyncio.create_task(listener.stop())
        await asyncio.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient().get(f"http://127.0.0.1:{listener.port}/")
        assert listener.running
        slow.let_go.set()
        assert (await asking).text == text
        await asyncio.wait_for(stopping, 5)
    assert not listener.running
    assert not slow.cancelled.is_set()


async def test_routers_of_a_node_share_the_port_and_others_do_not(slow: Slow, listener: Listener) -> None:
    slow.let_go.set()
    second = Listener(slow.app, listener.host, listener.port, drain_s=1)
    await second.start()
    url = f"http://127.0.0.1:{listener.port}/"
    async with httpx.AsyncClient() as client:
        assert {(await client.get(url)).status_code for _ in range(5)} == {200}
        await listener.stop()
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 200, "the other one goes on"
    await second.stop()
    with pytest.raises(OSError, match="address"):
        await Listener(slow.app, "203.0.113.77", listener.port, drain_s=1).start()


@pytest.mark.parametrize(("given", "kept"), [("mine-1", True), (None, False), ("", False), ("x" * 129, False)])
async def test_every_answer_has_its_requests_id(slow: Slow, listener: Listener, given: str | None, kept: bool) -> None:
    slow.let_go.set()
    headers = {} if given is None else {"x-request-id": given}
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{listener.port}/", headers=headers)
    [shown] = answer.headers.get_list("x-request-id")
    assert (shown == given) is kept
    assert 0 < len(shown) <= 128
