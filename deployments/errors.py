"""Errors of the HTTP surface, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.planner import Refusal
    from engine.errors import InvalidRequest

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status. param: the field at fault. code: a word for programs. headers, extra: more of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.extra = extra or {}

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code, **self.extra}
        return {"error": error}


def invalid(error: InvalidRequest, code: str | None = None) -> ApiError:
    """400 for a field that cannot be served."""
    return ApiError(400, error.message, error.field, code)


def refused(refusal: Refusal) -> ApiError:
    """400, 429 or 503 of a request that got no plan (`requests.md` section 4)."""
    codes = {400: "slo_infeasible", 429: "slo_infeasible_under_load", 503: "no_replica"}
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    extra = {}
    if refusal.status != 503:
        extra["smallest_feasible_slo_ms"] = refusal.smallest_feasible_slo_ms
    param = None if refusal.status == 503 else refusal.field
    return ApiError(refusal.status, refusal.message, param, codes[refusal.status], headers, extra)
