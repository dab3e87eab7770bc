"""The HTTP surface: OpenAI's endpoints, health, readiness and metrics, with every error in OpenAI's shape."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deployments.errors import ApiError, invalid
from deployments.exchange import Exchange
from deployments.keys import ApiKey, by_hash, key_of
from deployments.listener import Listener
from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.metrics import merge_texts
from deployments.openai_types import (
    Answer,
    ApiRequest,
    ChatCompletionRequest,
    CompletionRequest,
    model_entry,
    model_list,
    request_kind,
    usage,
)
from deployments.prediction import Size, predict
from deployments.request_id import HEADER, request_id
from deployments.router import Router
from engine.errors import InvalidRequest
from engine.plan import AR
from engine.request import parse_options

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from deployments.job import Job
    from deployments.settings import AppArgs

log = logging.getLogger("ray.serve")
MAX_BODY_BYTES = 1 << 20


@dataclass(slots=True)
class _Seen:
    """When a request arrived, and the tier that it turned out to have."""

    arrived_s: float
    tier: str = "unknown"


class Ingress:
    """The `Router` deployment: HTTP, planning and streaming in one process, one hop from the replicas."""

    def __init__(self, replica: DeploymentHandle, args: AppArgs) -> None:
        self.router = Router(replica, args)
        self.args = args
        self.keys = by_hash(args.api_keys)
        self.created = int(time.time())
        self.name = serve.get_replica_context().replica_id.unique_id
        self.model = args.served_name
        self.listener: Listener | None = None
        warm_up(self.model)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_api(self)

    @asynccontextmanager
    async def listening(self, api: Starlette) -> AsyncIterator[None]:
        """The router's own port, where one is configured, as long as Serve runs the application."""
        args = self.args
        if args.router_port is None:
            yield
            return
        self.listener = Listener(api, args.router_host, args.router_port, args.drain_s)
        await self.listener.start()
        yield
        await self.listener.stop()

    def check_health(self) -> None:
        """Raises when the router's own port is dead; Serve then replaces this router."""
        if self.listener is not None and not self.listener.running:
            raise RuntimeError(f"nothing listens on port {self.args.router_port}")

    async def respond(self, request: Request, kind: type[ApiRequest]) -> Response:
        """Answers a chat or a completion."""
        endpoint = "chat" if kind is ChatCompletionRequest else "completions"
        return await self._guarded(endpoint, self._respond, request, kind)

    async def explain(self, request: Request) -> Response:
        """Answers `/v1/plan`: what a chat or a completion with this body would get, without a forward."""
        return await self._guarded("plan", self._explain, request, None)

    async def _guarded(
        self,
        endpoint: str,
        work: Callable[[Request, type[ApiRequest] | None, _Seen], Awaitable[Response]],
        request: Request,
        kind: type[ApiRequest] | None,
    ) -> Response:
        """Runs `work`, turns what it raises into OpenAI's errors, and counts the request."""
        seen = _Seen(time.perf_counter())
        try:
            response = await work(request, kind, seen)
        except InvalidRequest as error:
            response = error_response(invalid(error))
        except ApiError as error:
            response = error_response(error)
        except Exception:
            log.exception("a request failed")
            response = error_response(ApiError(500, "internal error; the log has more", None, "internal_error"))
        self.router.metrics.requests.labels(endpoint, str(response.status_code), seen.tier).inc()
        return response

    async def _respond(self, request: Request, kind: type[ApiRequest] | None, seen: _Seen) -> Response:
        parsed, job = await self._read(request, kind, seen)
        answering = self.router.answer(job)
        events = answering.events()
        # The first event decides the status: after it only an error event can be sent.
        first = await anext(events)
        chat = isinstance(parsed, ChatCompletionRequest)
        answer = Answer(chat, job.request_id, self.model, int(time.time()), parsed.service_tier)
        shown = Exchange(self.router, job, parsed, answering, answer, events, first)
        return await (shown.streamed() if parsed.stream else shown.whole())

    async def _explain(self, request: Request, kind: type[ApiRequest] | None, seen: _Seen) -> Response:
        _, job = await self._read(request, kind, seen)
        if not BOARD.loads():
            await self.router.find_replicas()
        body = self.router.planning.explained(job, BOARD.loads())
        return JSONResponse({"model": self.model, **body})

    async def _read(self, request: Request, kind: type[ApiRequest] | None, seen: _Seen) -> tuple[ApiRequest, Job]:
        """The checked request. Raises ApiError and InvalidRequest."""
        key = self.key_of(request)
        body = await read_json(request)
        parsed = parse_options(kind or request_kind(body), body)
        if not isinstance(parsed, ApiRequest):
            raise TypeError("a request of this API is an ApiRequest")
        if parsed.model != self.model:
            text = f"model is {parsed.model!r}; allowed: {self.model!r}"
            raise ApiError(400, text, "model", "model_not_found")
        job = self.router.planning.job(
            parsed, request.headers, request_id(request.headers.get(HEADER)), seen.arrived_s, key
        )
        seen.tier = job.tier.name
        return parsed, job

    def key_of(self, request: Request) -> ApiKey | None:
        """The API key of a request, where keys are configured. Raises ApiError 401."""
        return key_of(request.headers.get("authorization"), self.keys)

    async def metrics(self) -> Response:
        """The registries of this router and of all replicas in one text."""
        replies = await self.router.of_replicas("metrics_text")
        await self.router.read_autoscaling()
        texts = [("router", self.name, self.router.metrics.text())]
        texts += [("replica", name, text) for name, text in replies]
        return PlainTextResponse(merge_texts(texts), media_type=CONTENT_TYPE_LATEST)


def warm_up(model: str) -> None:
    """Builds what pydantic puts off until first use, and what is compiled then: no request waits for it."""
    predict(AR, Size(1, 1), ReplicaLoad("warm-up"))
    parse_options(CompletionRequest, {"model": model, "prompt": "x"})
    parse_options(ChatCompletionRequest, {"model": model, "messages": [{"role": "user", "content": "x"}]})
    for chat in (True, False):
        answer = Answer(chat, "warm-up", model, 0, None)
        answer.opening()
        answer.chunk("x", "stop", spent=usage(1, 1))
        answer.whole("x", "stop", usage(1, 1), None, {})


def build_api(ingress: Ingress) -> Starlette:
    """The routes."""

    async def chat(request: Request) -> Response:
        return await ingress.respond(request, ChatCompletionRequest)

    async def completions(request: Request) -> Response:
        return await ingress.respond(request, CompletionRequest)

    async def models(request: Request) -> Response:
        try:
            ingress.key_of(request)
        except ApiError as error:
            return error_response(error)
        return JSONResponse(model_list(ingress.model, ingress.created, ingress.router.planning.context))

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            ingress.key_of(request)
        except ApiError as error:
            return error_response(error)
        if name != ingress.model:
            text = f"model is {name!r}; allowed: {ingress.model!r}"
            return error_response(ApiError(404, text, "model", "model_not_found"))
        return JSONResponse(model_entry(name, ingress.created, ingress.router.planning.context))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        if not BOARD.loads():
            await ingress.router.find_replicas()
        replicas = len(BOARD.loads())
        if replicas == 0:
            return error_response(ApiError(503, "no replica is ready", None, "no_replica", {"Retry-After": "1"}))
        return JSONResponse({"status": "ready", "replicas": replicas})

    async def metrics(_: Request) -> Response:
        return await ingress.metrics()

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/plan", ingress.explain, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_error}, lifespan=ingress.listening)


async def http_error(request: Request, error: Exception) -> Response:
    """What no route takes, in OpenAI's shape."""
    if not isinstance(error, HTTPException):
        raise error
    known = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed on {request.url.path}"}
    text = known.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(ApiError(error.status_code, text, None, f"http_{error.status_code}", headers))


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises ApiError 413 above 1 MiB and 400 for what is not JSON."""
    too_large = ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", None, "body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    try:
        return json.loads(bytes(body))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "body", "not_json") from None


def error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)
