"""The fields of a request: every bound names field, value and what is allowed; what is pinned becomes one rung."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.plan import AR, Decoding, Plan, PlanEntry, Rung, diffusion, self_speculation
from engine.request import (
    GenerationOptions,
    allowed_rungs,
    equivalent_to_ar,
    parse_options,
    pinned_rung,
    resolve_plan,
    scheduled_plan,
)

BLOCK = 32


def parsed(**fields: Any) -> GenerationOptions:
    return parse_options(GenerationOptions, fields)


BAD: list[tuple[str, Any, str]] = [
    ("decoding", "fast", "'auto', 'diffusion', 'ar' or 'self_speculation'"),
    ("block_length", 0, "greater than or equal to 1"),
    ("refinement_steps", 0, "greater than or equal to 1"),
    ("max_refinement_steps", 0, "greater than or equal to 1"),
    ("min_refinement_steps", -1, "greater than or equal to 1"),
    ("refinement_steps", 2.5, "integer"),
    ("threshold", 1.01, "less than or equal to 1"),
    ("threshold", -0.1, "greater than or equal to 0"),
    ("threshold", float("nan"), "finite"),
    ("threshold", "0.9", "number"),
    ("entropy_bound", -0.1, "greater than or equal to 0"),
    ("entropy_bound", float("nan"), "finite"),
    ("entropy_bound", 1001, "less than or equal to 1000"),
    ("remask", 0, "greater than 0"),
    ("remask", 1.5, "less than or equal to 1"),
    ("remask", "0.2", "number"),
    ("audit", "maybe", "'off', 'score', 'exact', or a number between 0 and 1"),
    ("audit", 0, "between 0 and 1"),
    ("audit", 1.0, "between 0 and 1"),
    ("audit", True, "between 0 and 1"),
    ("min_expected_quality", 1.5, "less than or equal to 1"),
    ("on_deadline", "explode", "'finish' or 'cut'"),
    ("latency_slo_ms", 0, "greater than 0"),
    ("latency_slo_ms", -150, "greater than 0"),
    ("latency_slo_ms", float("inf"), "finite"),
    ("ttft_slo_ms", -1, "greater than 0"),
    ("max_thinking_tokens", -1, "greater than or equal to 0"),
    ("temperature", -0.1, "greater than or equal to 0"),
    ("temperature", 2.1, "less than or equal to 2"),
    ("temperature", "hot", "number"),
    ("temperature", True, "number"),
    ("top_p", 0, "greater than 0"),
    ("top_p", 1.1, "less than or equal to 1"),
    ("top_k", -2, "greater than or equal to -1"),
    ("max_tokens", 0, "greater than or equal to 1"),
    ("max_tokens", "10", "integer"),
    ("min_tokens", -1, "greater than or equal to 0"),
    ("n", 2, "less than or equal to 1"),
    ("n", 0, "greater than or equal to 1"),
    ("seed", 2**64, "less than"),
    ("stop", ["x"] * 17, "at most 16"),
    ("stop", [""], "must not be empty"),
    ("stop", 7, "list"),
    ("plan", [], "at least 1"),
    ("plan", "fast", "list"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_a_value_out_of_bounds_is_refused_by_name(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(**{field: value})
    assert refused.value.field == field
    assert refused.value.message.startswith(field)
    assert repr(value)[:20] in refused.value.message
    assert allowed in refused.value.message


GOOD: list[dict[str, Any]] = [
    {"temperature": 0, "seed": 1},
    {"temperature": 2, "top_p": 1, "top_k": -1, "seed": -(2**63)},
    {"temperature": None, "top_p": None, "top_k": None, "seed": None, "stop": None, "n": None, "max_tokens": None},
    {"threshold": 0},
    {"threshold": 1},
    {"threshold": None},
    {"audit": 0.5},
    {"audit": None},
    {"stop": "one"},
    {"stop": ["x"] * 16},
    {"presence_penalty": 0, "frequency_penalty": None, "logprobs": False, "response_format": {"type": "text"}},
    {"a_field_nobody_knows": {"deep": [1]}, "user": "me", "metadata": {}},
    {"max_thinking_tokens": 0, "min_tokens": 0, "min_expected_quality": 0},
]


@pytest.mark.parametrize("fields", GOOD)
def test_bounds_include_what_they_name_and_unknown_fields_are_ignored(fields: dict[str, Any]) -> None:
    parsed(**fields)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert parsed(stop="end").stop == ["end"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
        ("min_p", 0.1),
        ("logit_bias", {"5": 10}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("best_of", 4),
        ("echo", True),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("suffix", "tail"),
        ("prediction", {"type": "content", "content": "x"}),
        ("guided_json", {}),
        ("revision", "on"),
    ],
)
def test_a_sampling_field_that_is_not_supported_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is not supported") as refused:
        parsed(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        parse_options(GenerationOptions, body)


DEPENDENT: list[tuple[dict[str, Any], str, str]] = [
    ({"block_length": 33}, "block_length", "1 to 32"),
    ({"refinement_steps": 33}, "refinement_steps", "1 to 32"),
    ({"max_refinement_steps": 40}, "max_refinement_steps", "1 to 32"),
    ({"block_length": 8, "refinement_steps": 9}, "refinement_steps", "1 to 8"),
    ({"min_refinement_steps": 5, "max_refinement_steps": 4}, "min_refinement_steps", "at most 4"),
    ({"stop_token_ids": [160]}, "stop_token_ids", "0 to 159"),
    ({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "0 to 3"),
    ({"max_tokens": 1023}, "max_tokens", "at most 1022"),
    ({"stop": ["x"]}, "stop", "stop_token_ids"),
]


@pytest.mark.parametrize(("fields", "field", "allowed"), DEPENDENT)
def test_bounds_that_depend_on_the_checkpoint(
    golden_engine: Engine, fields: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        golden_engine.intake.sequence("x", [1, 2], parsed(**fields), None, 0.0)
    assert refused.value.field == field
    assert allowed in refused.value.message


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "empty"), ([1, 160], "160"), ([-1], "-1"), ([1] * 1024, "at most 1023"), ([1] * 5000, "5000 tokens")],
)
def test_a_prompt_that_cannot_be_read_is_refused(golden_engine: Engine, prompt: list[int], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        golden_engine.intake.sequence("x", prompt, parsed(), None, 0.0)
    assert refused.value.field == "prompt"


def test_without_max_tokens_the_answer_may_fill_the_context(golden_engine: Engine) -> None:
    assert golden_engine.intake.sequence("x", [1] * 24, parsed(), None, 0.0).limits.max_tokens == 1000


def test_a_request_without_a_seed_gets_one_that_is_reported(golden_engine: Engine) -> None:
    seeds = {golden_engine.intake.sequence("x", [1], parsed(), None, 0.0).report.seed for _ in range(8)}
    assert len(seeds) == 8
    assert golden_engine.intake.sequence("x", [1], parsed(seed=7), None, 0.0).report.seed == 7


PINNED: list[tuple[dict[str, Any], Rung]] = [
    ({"decoding": "ar"}, AR),
    ({"decoding": "ar", "block_length": 8, "refinement_steps": 3}, AR),
    ({"decoding": "self_speculation"}, self_speculation(32)),
    ({"decoding": "self_speculation", "block_length": 8, "threshold": 0}, self_speculation(8)),
    (
        {"decoding": "self_speculation", "block_length": 8, "threshold": 0.5},
        Rung(Decoding.SELF_SPECULATION, 8, 8, 0.5, "exact"),
    ),
    ({"decoding": "diffusion"}, Rung(Decoding.DIFFUSION, 32, 32, 0.9)),
    ({"decoding": "diffusion", "block_length": 8}, Rung(Decoding.DIFFUSION, 8, 8, 0.9)),
    ({"decoding": "diffusion", "threshold": None}, Rung(Decoding.DIFFUSION, 32, 32, None)),
    ({"decoding": "diffusion", "threshold": None, "max_refinement_steps": 4}, Rung(Decoding.DIFFUSION, 32, 4, None)),
    ({"decoding": "diffusion", "max_refinement_steps": 6}, Rung(Decoding.DIFFUSION, 32, 6, 0.9)),
    ({"decoding": "diffusion", "refinement_steps": 4}, Rung(Decoding.DIFFUSION, 32, 4, None)),
    (
        {"decoding": "diffusion", "block_length": 5, "refinement_steps": 5, "threshold": 0.3},
        Rung(Decoding.DIFFUSION, 5, 5, 0.3),
    ),
    (
        {"decoding": "diffusion", "block_length": 5, "threshold": 0.3, "audit": 0.2},
        Rung(Decoding.DIFFUSION, 5, 5, 0.3, 0.2),
    ),
    (
        {"decoding": "diffusion", "block_length": 5, "threshold": 0.3, "latency_slo_ms": 100},
        Rung(Decoding.DIFFUSION, 5, 5, 0.3),
    ),
    (
        {"decoding": "diffusion", "block_length": 5, "entropy_bound": 0.5, "latency_slo_ms": 100},
        Rung(Decoding.DIFFUSION, 5, 5, None, entropy_bound=0.5),
    ),
    (
        {"decoding": "diffusion", "remask": 0.1, "max_refinement_steps": 6},
        Rung(Decoding.DIFFUSION, 32, 6, 0.9, remask=0.1),
    ),
    (
        {"decoding": "diffusion", "refinement_steps": 4, "threshold": 0.8, "entropy_bound": 0, "remask": 0.1},
        Rung(Decoding.DIFFUSION, 32, 4, 0.8, entropy_bound=0.0, remask=0.1),
    ),
    # One step commits everything: no policy changes that.
    ({"decoding": "diffusion", "refinement_steps": 1, "remask": 0.1}, Rung(Decoding.DIFFUSION, 32, 1)),
    ({"decoding": "diffusion", "block_length": 2, "entropy_bound": 1}, Rung(Decoding.DIFFUSION, 2, 2)),
]


@pytest.mark.parametrize(("fields", "rung"), PINNED)
def test_a_pinned_request_has_one_rung(fields: dict[str, Any], rung: Rung) -> None:
    assert pinned_rung(parsed(**fields), BLOCK) == rung
    plan = resolve_plan(parsed(**fields), BLOCK, ())
    assert plan.pinned
    assert plan.first == rung


@pytest.mark.parametrize("decoding", ["auto", "ar", "self_speculation"])
@pytest.mark.parametrize("field", ["entropy_bound", "remask"])
def test_policies_of_diffusion_are_refused_elsewhere(decoding: str, field: str) -> None:
    said = rf"{field} is 0\.5 with decoding '{decoding}'; allowed with: 'diffusion'"
    with pytest.raises(InvalidRequest, match=said) as refused:
        parsed(decoding=decoding, **{field: 0.5}).check(BLOCK, 160)
    assert refused.value.field == field
    parsed(decoding=decoding, **{field: None}).check(BLOCK, 160)


@pytest.mark.parametrize("fields", [{}, {"decoding": "diffusion", "latency_slo_ms": 100}])
def test_what_is_left_open_is_not_pinned(fields: dict[str, Any]) -> None:
    assert pinned_rung(parsed(**fields), BLOCK) is None


def rung(steps: int, quality: float | None, audit: str | float = "off") -> Rung:
    return Rung(Decoding.DIFFUSION, 32, steps, None, audit, quality)


CALIBRATED_AR = Rung(Decoding.AR, expected_quality=0.95)
AS_GOOD = replace(rung(32, 0.945), within_ar=True)
LADDER = (CALIBRATED_AR, self_speculation(32), AS_GOOD, rung(8, 0.945), rung(2, 0.5))


def test_without_an_slo_only_rungs_equal_to_ar_are_used() -> None:
    assert equivalent_to_ar(LADDER) == LADDER[:3]
    assert resolve_plan(parsed(), BLOCK, LADDER).ladder == LADDER[:3]
    assert resolve_plan(parsed(), BLOCK, ()).ladder == (AR,)


def test_a_block_length_that_no_rung_has_leaves_ar_and_says_so() -> None:
    plan = resolve_plan(parsed(block_length=7), BLOCK, LADDER)
    assert plan.ladder == (CALIBRATED_AR,)
    assert plan.reason.startswith("1 rung of the checkpoint's ladder")
    assert "no measured rung that is allowed has block_length 7" in plan.reason


def test_the_request_narrows_its_ladder() -> None:
    assert allowed_rungs(parsed(decoding="diffusion"), LADDER) == LADDER[2:]
    assert allowed_rungs(parsed(max_refinement_steps=8), LADDER) == (*LADDER[:2], *LADDER[3:])
    assert allowed_rungs(parsed(min_refinement_steps=8), LADDER) == LADDER[:4]
    assert allowed_rungs(parsed(min_expected_quality=0.8), LADDER) == LADDER[:4]
    assert allowed_rungs(parsed(block_length=16), LADDER) == (CALIBRATED_AR,)
    assert allowed_rungs(parsed(threshold=0.9), LADDER) == LADDER[:2]
    assert allowed_rungs(parsed(audit="exact"), LADDER) == LADDER[:2]


def test_an_audit_survives_where_no_rung_of_the_ladder_fits() -> None:
    plan = resolve_plan(parsed(decoding="diffusion", audit="exact", latency_slo_ms=100), BLOCK, LADDER)
    assert plan.ladder == (Rung(Decoding.DIFFUSION, 32, 32, 0.9, "exact"),)


ENTRY = {
    "from_token": 0,
    "decoding": "diffusion",
    "block_length": 8,
    "refinement_steps": 4,
    "threshold": None,
    "audit": "off",
}


def test_a_plan_entry_becomes_its_rung_again() -> None:
    rungs = [AR, self_speculation(16), self_speculation(9, 0.5), diffusion(8, 4), diffusion(32, None, 0.9, 0.25)]
    rungs.insert(4, diffusion(8, 4, None, "off", 0.5, 0.1))
    entries = [PlanEntry(10 * place, rung).to_dict() for place, rung in enumerate(rungs)]
    plan = scheduled_plan(parsed(plan=entries), BLOCK)
    assert plan is not None
    assert [(at, rung.policy()) for at, rung in plan.schedule] == [
        (10 * place, rung.policy()) for place, rung in enumerate(rungs)
    ]
    assert plan.rung_at(0).policy() == AR.policy()
    assert plan.rung_at(29).policy() == rungs[2].policy()
    assert plan.rung_at(10**6).policy() == rungs[-1].policy()
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_diffusion_entry_without_steps_has_the_released_schedule() -> None:
    plan = scheduled_plan(parsed(plan=[{**ENTRY, "refinement_steps": None}]), BLOCK)
    assert plan is not None
    assert plan.first.refinement_steps == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"decoding": "auto"},
        {"decoding": None},
        {"block_length": 33},
        {"block_length": 0},
        {"block_length": "8"},
        {"refinement_steps": 9},
        {"refinement_steps": 0},
        {"threshold": 1.5},
        {"threshold": "high"},
        {"entropy_bound": -1},
        {"entropy_bound": "low"},
        {"remask": 0},
        {"remask": 2.0},
        {"remask": True},
        {"decoding": "self_speculation", "remask": 0.5},
        {"audit": "maybe"},
        {"from_token": 1},
        {"from_token": -1},
        {"from_token": "0"},
        {"from_token": None},
        {"decoding": "ar"},
    ],
)
def test_a_plan_entry_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"plan\.0") as refused:
        scheduled_plan(parsed(plan=[{**ENTRY, **changes}]), BLOCK)
    assert refused.value.field == "plan"


def test_entries_must_rise() -> None:
    for start in (0, 5):
        with pytest.raises(InvalidRequest, match=r"plan\.2"):
            scheduled_plan(parsed(plan=[ENTRY, {**ENTRY, "from_token": 5}, {**ENTRY, "from_token": start}]), BLOCK)
    with pytest.raises(InvalidRequest, match=r"plan\.0"):
        scheduled_plan(parsed(plan=[{}]), BLOCK)


def test_a_plan_needs_a_rung_and_a_start_inside_its_ladder() -> None:
    with pytest.raises(ValueError, match="at least one rung"):
        Plan(ladder=())
    with pytest.raises(ValueError, match="start 1 is outside"):
        Plan(ladder=(AR,), start=1)


def test_the_step_budget_is_null_outside_diffusion() -> None:
    assert PlanEntry(0, self_speculation(8)).to_dict()["refinement_steps"] is None
    assert PlanEntry(0, AR).to_dict()["refinement_steps"] is None
    assert PlanEntry(0, diffusion(8, 3)).to_dict()["refinement_steps"] == 3
