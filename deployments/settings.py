"""What an operator may set: the typed arguments of `serve run deployments.app:build key=value` and of YAML `args:`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.keys import ApiKey
from deployments.tiers import DEFAULT_TIER, SERVICE_TIERS, TIERS, Tier, capacity_share
from engine.checkpoint.config import ModelConfig
from engine.checkpoint.memory import check_tensor_parallel
from engine.config import Quantization, check_graphs, check_products
from engine.errors import CheckpointError

SHIPPED_MODEL = Path(__file__).parent.parent / "engine" / "tiny" / "checkpoint"


class AppArgs(BaseModel):
    """Arguments of the application; a wrong value is refused before anything starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(str(SHIPPED_MODEL), description="Checkpoint directory; default: the model that ships.")
    model_name: str | None = Field(None, description="Name in `/v1/models`; null = `stepdial-tiny` or the directory's.")

    min_replicas: int = Field(1, ge=1, le=1024, description="Replicas that always run.")
    max_replicas: int = Field(1, ge=1, le=1024, description="Replicas that load may start.")
    tp: Literal[1, 2, 4, 8] = Field(
        1, description="Tensor parallelism: ranks of a replica, a process on one node each."
    )
    tp_backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="How ranks exchange tensors; auto = nccl between GPUs, gloo between CPU processes."
    )
    replica_cpus: float = Field(0.5, ge=0, le=1024, description="Logical CPUs that Ray reserves for each rank.")
    replica_gpus: int = Field(0, ge=0, le=1, description="GPUs that Ray reserves for each rank.")
    target_queue_s: float = Field(2.0, gt=0, le=3600, description="Seconds of work per replica to scale for, of tiers "
                                  "that set none of their own.")  # fmt: skip
    upscale_delay_s: float = Field(2.0, ge=0, description="Seconds that more work must last before a replica starts.")
    downscale_delay_s: float = Field(60.0, ge=0, description="Seconds that less work must last before one stops.")
    metrics_interval_s: float = Field(0.5, ge=0.5, le=60, description="Seconds between a replica's reports of work.")
    drain_s: float = Field(60.0, ge=0, description="Seconds that a stopping replica gives its open streams.")
    health_period_s: float = Field(2.0, gt=0, description="Seconds between health checks of a replica.")

    routers: int = Field(1, ge=1, le=64, description="Router processes.")
    router_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="HTTP port that the routers of a node share, besides Serve's proxy; null = none.",
    )
    router_host: str = Field("127.0.0.1", description="Address that it is bound to.")
    router_cpus: float = Field(0.2, ge=0, le=64, description="Logical CPUs that Ray reserves for a router.")
    max_ongoing_requests: int = Field(4096, ge=1, description="Open requests per router and per replica.")
    routing_stats_period_s: float = Field(0.5, ge=0.1, le=60, description="Seconds between a replica's load reports.")
    proxy_overhead_ms: float = Field(5.0, ge=0, description="p95 of what the HTTP proxy adds before the router, ms.")
    expected_output_tokens: int = Field(
        256, ge=1, description="p95 of output tokens to plan for until answers were seen; max_tokens bounds it."
    )
    max_attempts: int = Field(
        4, ge=1, le=32, description="Replicas that one request may be sent to, failures included."
    )
    failover_wait_s: float = Field(30.0, gt=0, description="Seconds to wait for a replica once one has died.")

    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Arithmetic of weights and K/V.")
    batch_invariant: bool = Field(
        False, description="On a GPU: a pinned answer has the same bits in any batch; slower (see EngineConfig)."
    )
    cuda_graphs: bool = Field(
        False, description="On a GPU: short forwards are recorded at start and replayed (see EngineConfig)."
    )
    narrow_products: bool = Field(
        False, description="On a GPU: products of few rows by a kernel of their own (see EngineConfig)."
    )
    quantization: Quantization = Field("none", description="fp8: the layers' weights in FP8, on a GPU.")
    threads: int = Field(1, ge=1, le=1024, description="Torch threads of a replica.")
    max_sequences: int = Field(256, ge=1, le=4096, description="Sequences of a replica that may hold K/V at once.")
    max_waiting: int = Field(4096, ge=1, description="Requests that may wait at a replica; one more is refused (429).")
    kv_tokens: int | None = Field(None, ge=64, description="K/V capacity of a replica in tokens; null = measured.")
    cost_model: str | None = Field(None, description="File with a saved cost model, so that a replica starts informed.")
    calibration: str | None = Field(
        None, description="Folder with ladder.json and quality.json measured on this model; null = beside it."
    )

    api_keys: tuple[ApiKey, ...] = Field(
        (), description="Keys that may ask, by SHA-256, with their bounds; empty = no key is needed."
    )
    tiers: tuple[Tier, ...] = Field(TIERS, min_length=1, description="Named SLOs.")
    service_tiers: dict[str, str] = Field(dict(SERVICE_TIERS), description="OpenAI's service_tier values to tiers.")

    @field_validator("model")
    @classmethod
    def _model_is_a_checkpoint(cls, value: str) -> str:
        path = Path(value).expanduser().resolve()
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} has no config.json; allowed: a checkpoint directory")
        return str(path)

    @field_validator("tp", mode="before")
    @classmethod
    def _tp_as_text(cls, value: object) -> object:
        """`tp=2` on the command line arrives as text."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("max_replicas")
    @classmethod
    def _max_is_not_below_min(cls, value: int, info: object) -> int:
        low = getattr(info, "data", {}).get("min_replicas", 1)
        if value < low:
            raise ValueError(f"max_replicas is {value}; allowed: at least min_replicas ({low})")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_differ(cls, value: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for field in ("name", "sha256"):
            seen = [getattr(key, field) for key in value]
            twice = next((item for item in seen if seen.count(item) > 1), None)
            if twice is not None:
                raise ValueError(f"api_keys has the {field} {twice!r} twice; allowed: once")
        return value

    @model_validator(mode="after")
    def _ranks_can_be_placed(self) -> AppArgs:
        check_products(self.quantization, self.batch_invariant, self.narrow_products, self.tp)
        if self.cuda_graphs and not self.replica_gpus:
            raise ValueError(f"cuda_graphs is true with replica_gpus {self.replica_gpus}; allowed: replica_gpus 1")
        check_graphs(self.cuda_graphs, self.tp, self.tp_backend)
        if self.tp == 1:
            return self
        if not self.replica_cpus and not self.replica_gpus:
            raise ValueError(
                f"replica_cpus and replica_gpus are 0; allowed with tp {self.tp}: more than 0 of one of them "
                "(a placement group has to reserve something)"
            )
        try:
            check_tensor_parallel(ModelConfig.from_dir(self.model), self.tp)
        except CheckpointError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _tiers_fit_together(self) -> AppArgs:
        names = [tier.name for tier in self.tiers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tiers has {twice!r} twice; allowed: once")
        if DEFAULT_TIER not in {*names, *self.service_tiers}:
            raise ValueError(f"tiers has no {DEFAULT_TIER!r}, which requests get that name none")
        known = ", ".join(names)
        for asked, name in self.service_tiers.items():
            if name not in names:
                raise ValueError(f"service_tiers maps {asked!r} to {name!r}; allowed: {known}")
        for key in self.api_keys:
            for name in key.tiers or ():
                if name not in names:
                    raise ValueError(f"api_keys: tiers of {key.name!r} has {name!r}; allowed: {known}")
        for tier in self.tiers:
            if capacity_share(tier, self.tiers) <= 0:
                raise ValueError(
                    f"reserved_share: heavier tiers leave nothing to tier {tier.name!r}; allowed: a sum < 1"
                )
        return self

    @property
    def target_queues_s(self) -> dict[str, float]:
        """Seconds of work per replica to scale for, by tier."""
        return {tier.name: tier.target_queue_s or self.target_queue_s for tier in self.tiers}

    @property
    def served_name(self) -> str:
        """The model's name towards clients."""
        if self.model_name is not None:
            return self.model_name
        path = Path(self.model)
        return "stepdial-tiny" if path == SHIPPED_MODEL.resolve() else path.name
