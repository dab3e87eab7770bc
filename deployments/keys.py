"""API keys: who may ask, for which tiers, how tight, and whose cached prefixes are whose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from deployments.errors import ApiError

SCHEME = "bearer "


class ApiKey(BaseModel):
    """One key, known by its hash, with the bounds of what its owner may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="What logs call the key's owner; not the key.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, 64 hexadecimal digits.")
    tiers: tuple[str, ...] | None = Field(
        None, min_length=1, description="Tiers that may be used, the first by requests that name none; null = all."
    )
    tightest_latency_slo_ms: float | None = Field(None, gt=0, description="As a tier's; the looser of both holds.")
    tightest_ttft_slo_ms: float | None = Field(None, gt=0, description="As a tier's; the looser of both holds.")
    min_expected_quality: float | None = Field(None, ge=0, le=1, description="As a tier's; the higher of both holds.")
    max_weight: float | None = Field(None, gt=0, description="Most weight of its requests, whatever their tier.")

    def salt(self, own: str | None) -> str:
        """The cache salt of a request with this key: prefixes are never shared with another key's.

        Args:
            own: the request's `cache_salt`, which divides the key's prefixes further.
        """
        return hashlib.sha256(f"{self.name}\0{'' if own is None else 'salt:' + own}".encode()).hexdigest()


def key_of(authorization: str | None, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The key of an `authorization` header; None where no keys are configured. Raises ApiError 401.

    Args:
        keys: by `sha256`.
    """
    if not keys:
        return None
    if authorization is None or not authorization.lower().startswith(SCHEME):
        raise _refused("an API key is required: send the header 'authorization: Bearer KEY'")
    given = authorization[len(SCHEME) :].strip()
    # Only a hash is looked up, so the time that it takes says nothing about the keys.
    key = keys.get(hashlib.sha256(given.encode()).hexdigest())
    if key is None:
        raise _refused("the API key is not known here")
    return key


def by_hash(keys: Sequence[ApiKey]) -> dict[str, ApiKey]:
    return {key.sha256: key for key in keys}


def _refused(message: str) -> ApiError:
    return ApiError(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
