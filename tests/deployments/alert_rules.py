"""Reads the Prometheus rule file: which metrics its expressions name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

RULES = Path(__file__).parents[2] / "cluster_configs" / "prometheus_rules.yaml"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metric_names(expression: str) -> set[str]:
    """Series of ours that an expression names."""
    return set(re.findall(r"\b(?:ray_)?stepdial_\w+", expression))


def series_names(text: str) -> set[str]:
    """Every series that a /metrics text can have, those of families without samples so far included."""
    return {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(text)
        for suffix in SUFFIXES.get(family.type, ("",))
    }
