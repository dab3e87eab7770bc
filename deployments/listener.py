"""A router's own HTTP port, besides Serve's proxy: one hop and two thirds of a refusal's CPU less.

Every router of a node may listen on the same port: the kernel gives each new connection to one of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from starlette.datastructures import Headers, MutableHeaders

from deployments.request_id import HEADER, request_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ray.serve")
KEEP_ALIVE_S = 65
"""Longer than the 60 s of common load balancers, so that it is never us who closes a connection in use."""


class Listener:
    """Serves an application on `host:port` until `stop`."""

    def __init__(self, app: ASGIApp, host: str, port: int, drain_s: float) -> None:
        """`drain_s`: seconds that open answers get when it stops."""
        self.host, self.port = host, port
        config = uvicorn.Config(
            Named(UntilDisconnect(app)),
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain_s)),
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._serving is not None and not self._serving.done()

    async def start(self) -> None:
        """Listens. Raises OSError when the port cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self.host, self.port))
        except OSError:
            listening.close()
            raise
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        log.info("listening on %s:%d", self.host, self.port)

    async def stop(self) -> None:
        """Takes no new connection and ends when the open answers have."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Server(uvicorn.Server):
    """Signals belong to the process, which is Ray's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Named:
    """Gives every request its id, and its answer too, as Serve's proxy does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = request_id(Headers(scope=scope).get(HEADER))
        others = [(key, value) for key, value in scope["headers"] if key != HEADER.encode()]
        scope["headers"] = [*others, (HEADER.encode(), name.encode("latin-1"))]

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self.app(scope, receive, send_named)


class UntilDisconnect:
    """Cancels an answer whose client has gone, as Serve's proxy does: nothing is generated for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body_read = asyncio.Event()

        async def disconnect() -> Message:
            await body_read.wait()
            # After the body the next message is the disconnect.
            return await receive()

        gone = asyncio.create_task(disconnect())

        async def receive_body() -> Message:
            if body_read.is_set():
                return await asyncio.shield(gone)
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                body_read.set()
            return message

        answering = asyncio.ensure_future(self.app(scope, receive_body, send))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.wait((answering,))
            if not answering.cancelled():
                answering.result()
        finally:
            gone.cancel()
            answering.cancel()
