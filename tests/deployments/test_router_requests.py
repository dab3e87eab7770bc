"""What a request means: tiers, header forms, errors' shape, settings and cluster configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.errors import invalid, refused
from deployments.planner import Refusal
from deployments.settings import AppArgs
from deployments.slo_headers import apply_headers
from deployments.tiers import SERVICE_TIERS, TIERS, find_tier
from engine.errors import InvalidRequest
from engine.request import GenerationOptions
from tests.engine.checkpoint.golden import PUBLISHED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("asked", "name"), [(None, "default"), ("auto", "default"), ("flex", "batch"), ("realtime", "realtime")]
)
def test_tiers_by_name_and_by_openais_values(asked: str | None, name: str) -> None:
    assert find_tier(asked, TIERS, SERVICE_TIERS).name == name


def test_an_unknown_tier_names_those_that_exist() -> None:
    with pytest.raises(InvalidRequest, match="service_tier is 'gold'; allowed: auto, batch, default"):
        find_tier("gold", TIERS, SERVICE_TIERS)


@pytest.mark.parametrize(
    ("headers", "latency", "first"),
    [
        ({"x-stepdial-latency-slo-ms": "800"}, 800, None),
        ({"x-stepdial-ttft-slo-ms": "90.5"}, None, 90.5),
        ({"x-llm-d-slo-ttft-ms": "100", "x-llm-d-slo-tpot-ms": "5"}, 600, 100),
        ({"x-llm-d-slo-tpot-ms": "5"}, 500, None),
        ({}, None, None),
    ],
)
def test_header_forms(headers: dict[str, str], latency: float | None, first: float | None) -> None:
    request = GenerationOptions()
    apply_headers(request, headers, output_tokens=100)
    assert (request.latency_slo_ms, request.ttft_slo_ms) == (latency, first)


def test_the_body_goes_before_the_header() -> None:
    request = GenerationOptions(latency_slo_ms=50)
    apply_headers(request, {"x-stepdial-latency-slo-ms": "800"}, 10)
    assert request.latency_slo_ms == 50


@pytest.mark.parametrize("value", ["fast", "-3", "0", "nan", "inf"])
def test_a_bad_header_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match="x-stepdial-latency-slo-ms is"):
        apply_headers(GenerationOptions(), {"x-stepdial-latency-slo-ms": value}, 10)


def test_errors_have_openais_shape() -> None:
    error = invalid(InvalidRequest("top_k", "top_k is -3: no"))
    assert error.body() == {
        "error": {"message": "top_k is -3: no", "type": "invalid_request_error", "param": "top_k", "code": None}
    }
    late = refused(Refusal(429, "busy", 812, 3))
    assert (late.status, late.headers) == (429, {"Retry-After": "3"})
    assert late.body()["error"]["smallest_feasible_slo_ms"] == 812
    assert late.body()["error"]["type"] == "rate_limit_error"
    assert "smallest_feasible_slo_ms" not in refused(Refusal(503, "none", None, 5)).body()["error"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"min_replicas": 0}, "min_replicas"), ({"min_replicas": 3, "max_replicas": 2}, "max_replicas"),
     ({"model": "/nowhere"}, "model"), ({"modle": "x"}, "modle")],
)  # fmt: skip
def test_settings_are_refused_by_name(checkpoint: Path, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        AppArgs(**{"model": str(checkpoint), **wrong})


def test_settings_come_as_strings_from_a_command_line(checkpoint: Path) -> None:
    args = AppArgs.model_validate({"model": str(checkpoint), "max_replicas": "3", "target_queue_s": "1.5"})
    assert (args.max_replicas, args.target_queue_s) == (3, 1.5)
    assert args.served_name == checkpoint.name


def test_every_setting_is_described() -> None:
    assert [name for name, field in AppArgs.model_fields.items() if not field.description] == []


CONFIGS = [file for file in (ROOT / "cluster_configs").glob("*.yaml") if not file.name.startswith("prometheus")]


@pytest.mark.parametrize("file", sorted(CONFIGS), ids=lambda file: file.name)
def test_cluster_configs_are_valid_and_local_or_ask_for_keys(file: Path) -> None:
    raw = yaml.safe_load(file.read_text())
    config = ServeDeploySchema.model_validate(raw)
    [application] = config.applications
    assert application.import_path == "deployments.app:build"
    args = AppArgs.model_validate({**application.args, "model": str(PUBLISHED / "14b-instruct")})
    assert config.http_options.host == "127.0.0.1" or args.api_keys


def test_there_is_a_config_for_a_laptop() -> None:
    assert (ROOT / "cluster_configs" / "laptop.yaml").is_file()
