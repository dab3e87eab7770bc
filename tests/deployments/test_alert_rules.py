"""The Prometheus rule file: its form, and that what it watches exists (`tests/e2e` compares with a served text)."""

from __future__ import annotations

import re

import yaml

from deployments.metrics import EngineMetrics, RouterMetrics, merge_texts
from deployments.settings import AppArgs
from deployments.tiers import TIERS
from engine.cost_model import ForwardCostModel
from engine.plan import Rung, diffusion
from engine.stats import EngineStats
from tests.deployments.alert_rules import RULES, metric_names, rules, series_names


def text() -> str:
    stats = EngineStats(cost_model=ForwardCostModel().to_dict())
    return merge_texts([("router", "r", RouterMetrics().text()), ("replica", "a", EngineMetrics(lambda: stats).text())])


def test_rules_have_the_form_that_prometheus_reads() -> None:
    data = yaml.safe_load(RULES.read_text())
    assert set(data) == {"groups"}
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 5
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        for opened, closed in ("()", "[]", "{}"):
            assert rule["expr"].count(opened) == rule["expr"].count(closed)


def test_every_metric_that_a_rule_names_exists() -> None:
    known = series_names(text())
    named = {name for rule in rules() for name in metric_names(rule["expr"])}
    assert len(named) >= 8
    assert named <= known
    assert "stepdial_expected_quality_sum" in named, "delivered quality has an alert"
    assert not {"stepdial_expected_quality_total", "stepdial_slo"} & known, "a wrong suffix would be noticed"


def test_floors_are_those_of_the_tiers_and_of_ar() -> None:
    metrics = RouterMetrics()
    ar = Rung.from_dict({"decoding": "ar", "expected_quality": 0.96})
    near = Rung.from_dict({**diffusion(8, 4).to_dict(), "expected_quality": 0.955, "within_ar": True})
    lossy = Rung.from_dict({**diffusion(8, 1).to_dict(), "expected_quality": 0.7})
    metrics.tell_floors(TIERS, (ar, near, lossy))
    floors = {
        tier.name: metrics.registry.get_sample_value("stepdial_tier_quality_floor", {"tier": tier.name})
        for tier in AppArgs().tiers
    }
    assert floors == {"default": 0.955, "realtime": None, "interactive": 0.5, "standard": 0.955, "batch": 0.955}
