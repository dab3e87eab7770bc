"""The HTTP surface: OpenAI's endpoints, health, readiness and metrics, with every error in OpenAI's shape."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.exceptions import HTTPException

from deployments.errors import ApiError, invalid
from deployments.job import End, Job, Text
from deployments.load_board import BOARD
from deployments.metrics import merge_texts
from deployments.openai_types import (
    Answer,
    ApiRequest,
    ChatCompletionRequest,
    CompletionRequest,
    model_entry,
    model_list,
    usage,
)
from deployments.router import Router
from engine.errors import InvalidRequest
from engine.request import parse_options

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from deployments.answering import Answering
    from deployments.settings import AppArgs

log = logging.getLogger("ray.serve")
MAX_BODY_BYTES = 1 << 20
MAX_REQUEST_ID = 128
PLAN_HEADERS = ("decoding", "block_length", "refinement_steps")
END_HEADERS = ("denoise_steps", "forwards", "latency_ms", "slo_met", "replica")


class Ingress:
    """The `Router` deployment: HTTP, planning and streaming in one process, one hop from the replicas."""

    def __init__(self, replica: DeploymentHandle, args: AppArgs) -> None:
        self.router = Router(replica, args)
        self.args = args
        self.created = int(time.time())
        self.name = serve.get_replica_context().replica_id.unique_id

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    async def respond(self, request: Request, kind: type[ApiRequest]) -> Response:
        """Answers a chat or a completion."""
        arrived_s = time.perf_counter()
        endpoint = "chat" if kind is ChatCompletionRequest else "completions"
        tier = "unknown"
        try:
            body = await read_json(request)
            parsed = parse_options(kind, body)
            if not isinstance(parsed, ApiRequest):
                raise TypeError(f"{kind.__name__} is not a request of this API")
            if parsed.model != self.args.served_name:
                text = f"model is {parsed.model!r}; allowed: {self.args.served_name!r}"
                raise ApiError(400, text, "model", "model_not_found")
            job = self.router.job(parsed, request.headers, request_id_of(request), arrived_s)
            tier = job.tier.name
            answering = self.router.answer(job)
            events = answering.events()
            # The first event decides the status: after it only an error event can be sent.
            first = await anext(events)
            answer = Answer(
                endpoint == "chat", job.request_id, self.args.served_name, int(time.time()), parsed.service_tier
            )
            shown = Exchange(self, job, parsed, answering, answer, events, first)
            response = await (shown.streamed() if parsed.stream else shown.whole())
        except InvalidRequest as error:
            response = error_response(invalid(error))
        except ApiError as error:
            response = error_response(error)
        except Exception:
            log.exception("a request failed")
            response = error_response(ApiError(500, "internal error; the log has more", None, "internal_error"))
        self.router.metrics.requests.labels(endpoint, str(response.status_code), tier).inc()
        return response

    async def metrics(self) -> Response:
        """The registries of this router and of all replicas in one text."""
        try:
            replies = await self.router.handle.broadcast("metrics_text").results_async()
        except DeploymentUnavailableError:
            replies = []
        texts = [("router", self.name, self.router.metrics.text())]
        texts += [("replica", name, text) for name, text in replies]
        return PlainTextResponse(merge_texts(texts), media_type=CONTENT_TYPE_LATEST)


class Exchange:
    """One request and its answer on the wire."""

    def __init__(
        self,
        ingress: Ingress,
        job: Job,
        request: ApiRequest,
        answering: Answering,
        answer: Answer,
        events: AsyncGenerator[Text | End, None],
        first: Text | End,
    ) -> None:
        self.metrics = ingress.router.metrics
        self.show_ids = request.return_token_ids or ingress.router.tokenizer is None
        self.job = job
        self.request = request
        self.answering = answering
        self.answer = answer
        self.events = events
        self.first = first

    async def whole(self) -> Response:
        """The answer in one piece."""
        pieces: list[str] = []
        token_ids: list[int] = []
        event: Text | End = self.first
        try:
            while isinstance(event, Text):
                pieces.append(event.text)
                token_ids += event.token_ids
                event = await anext(self.events)
        except BaseException:
            self.metrics.disconnects.inc()
            raise
        finally:
            await self.events.aclose()
        self._count(event)
        spent = usage(event.prompt_tokens, event.completion_tokens, event.cached_tokens)
        body = self.answer.whole(
            "".join(pieces),
            event.finish_reason,
            spent,
            token_ids if self.show_ids else None,
            {"stepdial": event.stepdial},
        )
        headers = {**self._headers(), **_headers_of(event.stepdial, END_HEADERS)}
        return JSONResponse(body, headers=headers)

    async def streamed(self) -> Response:
        """Server-sent events."""
        headers = {**self._headers(), "cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(self._chunks(), media_type="text/event-stream", headers=headers)

    async def _chunks(self) -> AsyncIterator[str]:
        options, answer = self.request.stream_options, self.answer
        ended = False
        produced = 0
        try:
            opening = answer.opening()
            if opening is not None:
                yield _sse(opening)
            event: Text | End = self.first
            while isinstance(event, Text):
                produced += len(event.token_ids)
                so_far = usage(len(self.job.prompt), produced) if options.continuous_usage_stats else None
                if event.text or self.show_ids:
                    ids = event.token_ids if self.show_ids else None
                    yield _sse(answer.chunk(event.text, token_ids=ids, spent=so_far))
                event = await anext(self.events)
            ended = True
            self._count(event)
            spent = usage(event.prompt_tokens, event.completion_tokens, event.cached_tokens)
            extra = {"stepdial": event.stepdial}
            last = None if options.include_usage else extra
            so_far = spent if options.continuous_usage_stats else None
            yield _sse(answer.chunk("", event.finish_reason, spent=so_far, extra=last))
            if options.include_usage:
                yield _sse(answer.usage_chunk(spent, extra))
            yield DONE
        except ApiError as error:
            ended = True
            yield _sse(error.body())
            yield DONE
        except Exception:
            ended = True
            log.exception("request %s failed in the middle of its stream", self.job.request_id)
            yield _sse(ApiError(500, "internal error; the log has more", None, "internal_error").body())
            yield DONE
        finally:
            if not ended:
                self.metrics.disconnects.inc()
            await self.events.aclose()

    def _headers(self) -> dict[str, str]:
        plan = self.answering.plan
        if plan is None:
            return {}
        first = plan.first
        known: dict[str, Any] = {
            "decoding": first.decoding.value,
            "block_length": first.block_length,
            "refinement_steps": first.refinement_steps if first.is_diffusion else None,
            "slo_ms": plan.slo_ms,
            "predicted_p95_ms": plan.predicted_p95_ms,
            "expected_quality": self.answering.expected_quality,
            "seed": self.job.fields["seed"],
            "replica": self.answering.replica,
        }
        return _headers_of(known, tuple(known))

    def _count(self, end: End) -> None:
        metrics, said, tier = self.metrics, end.stepdial, self.job.tier.name
        mode = said.get("decoding") or "none"
        metrics.latency.labels(tier, mode).observe(said["latency_ms"] / 1e3)
        metrics.output_tokens.labels(mode).observe(end.completion_tokens)
        if said["ttft_ms"] is not None:
            metrics.first_text.labels(tier, mode).observe(said["ttft_ms"] / 1e3)
        if said["slo_met"] is not None:
            metrics.slo.labels(tier, str(said["slo_met"]).lower()).inc()
        if said["predicted_p95_ms"]:
            metrics.prediction.labels(mode).observe(said["latency_ms"] / said["predicted_p95_ms"])
        if said["expected_quality"] is not None:
            metrics.quality.labels(tier).observe(said["expected_quality"])


def build_api(ingress: Ingress) -> FastAPI:
    """The routes."""
    api = FastAPI(title="Stepdial", docs_url=None, redoc_url=None, openapi_url=None)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        known = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed on {request.url.path}"}
        text = known.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        return error_response(ApiError(error.status_code, text, None, f"http_{error.status_code}", headers))

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await ingress.respond(request, ChatCompletionRequest)

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await ingress.respond(request, CompletionRequest)

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return model_list(ingress.args.served_name, ingress.created, ingress.router.context)

    @api.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != ingress.args.served_name:
            text = f"model is {name!r}; allowed: {ingress.args.served_name!r}"
            return error_response(ApiError(404, text, "model", "model_not_found"))
        return JSONResponse(model_entry(name, ingress.created, ingress.router.context))

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/ready")
    async def ready() -> Response:
        if not BOARD.loads():
            await ingress.router.find_replicas()
        replicas = len(BOARD.loads())
        if replicas == 0:
            return error_response(ApiError(503, "no replica is ready", None, "no_replica", {"Retry-After": "1"}))
        return JSONResponse({"status": "ready", "replicas": replicas})

    @api.get("/metrics")
    async def metrics() -> Response:
        return await ingress.metrics()

    return api


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


def request_id_of(request: Request) -> str:
    """The client's `x-request-id`, or a fresh one."""
    given = request.headers.get("x-request-id", "")
    return given if 0 < len(given) <= MAX_REQUEST_ID and given.isprintable() else uuid.uuid4().hex


def error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


DONE = "data: [DONE]\n\n"


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _headers_of(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    shown = {}
    for name in names:
        value = values.get(name)
        if value is not None:
            shown[f"x-stepdial-{name.replace('_', '-')}"] = (
                str(value).lower() if isinstance(value, bool) else str(value)
            )
    return shown
