"""One request and its answer on the wire: the body in one piece, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from deployments.errors import ApiError
from deployments.job import End, Job, Text
from deployments.openai_types import Answer, ApiRequest, usage

if TYPE_CHECKING:
    from deployments.answering import Answering
    from deployments.router import Router

log = logging.getLogger("ray.serve")
SAID = (
    "decoding",
    "draft_rule",
    "max_steps",
    "denoise_steps",
    "forwards",
    "latency_ms",
    "slo_met",
    "replica",
    "expected_quality",
)
DONE = "data: [DONE]\n\n"


class Exchange:
    """Writes one answer."""

    def __init__(
        self,
        router: Router,
        job: Job,
        request: ApiRequest,
        answering: Answering,
        answer: Answer,
        events: AsyncGenerator[Text | End, None],
        first: Text | End,
    ) -> None:
        self.metrics = router.metrics
        self.thinking = router.thinking_of(request)
        self.show_ids = request.return_token_ids or router.tokenizer is None
        self.job = job
        self.request = request
        self.answering = answering
        self.answer = answer
        self.events = events
        self.first = first

    async def whole(self) -> Response:
        """The answer in one piece."""
        text = thinking = ""
        token_ids: list[int] = []
        event: Text | End = self.first
        try:
            while isinstance(event, Text):
                thought, said = self._split(event)
                thinking, text = thinking + thought, text + said
                token_ids += event.token_ids
                event = await anext(self.events)
        except asyncio.CancelledError:
            self.metrics.disconnects.inc()
            raise
        finally:
            await self.events.aclose()
        self._count(event)
        spent = usage(event.prompt_tokens, event.completion_tokens, event.cached_tokens)
        body = self.answer.whole(
            text,
            event.finish_reason,
            spent,
            token_ids if self.show_ids else None,
            {"stepdial": event.stepdial},
            thinking,
        )
        # The plan first, then what was done: on a name of both, what was done counts.
        headers = {**self._headers(), **_headers_of(event.stepdial, SAID)}
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
                    thinking, text = self._split(event)
                    yield _sse(answer.chunk(text, thinking=thinking, token_ids=ids, spent=so_far))
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

    def _split(self, event: Text) -> tuple[str, str]:
        """(thinking, answer) of a piece of text."""
        return ("", event.text) if self.thinking is None else self.thinking.push(event.token_ids, event.text)

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
