"""The audit against plain full forwards of transformers' own modules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference_loops import ContextCache, ReferenceLoops
from engine.decoding.audit import kept_tokens
from engine.engine import Engine
from tests.engine.serving import MODES, PROMPTS, answer, ask
from tests.oracle.golden_cases import GOLDEN

SOME = PROMPTS[2:]
LENGTHS = (2, 5, 8, 16, 32)


@pytest.fixture(scope="module")
def reference() -> ReferenceLoops:
    return ReferenceLoops(GOLDEN)


@torch.inference_mode()
def ar_logits(reference: ReferenceLoops, prompt: list[int], output: list[int]) -> Tensor:
    """Logits `[output, vocab]` from which AR would choose each output token, by one plain causal forward."""
    hidden = reference.causal(prompt + output[:-1], ContextCache(config=reference.model.config))
    logits: Tensor = reference.model.lm_head(hidden)
    return logits[len(prompt) - 1 :]


def mean_logprob(reference: ReferenceLoops, prompt: list[int], output: list[int]) -> float:
    rows = ar_logits(reference, prompt, output).log_softmax(-1)
    return float(rows.gather(1, torch.tensor(output)[:, None]).mean())


def diffusion(length: int, **fields: Any) -> dict[str, Any]:
    return {"decoding": "diffusion", "block_length": length, "max_tokens": 40, "temperature": 0, **fields}


AR: dict[str, Any] = {"decoding": "ar", "max_tokens": 40, "temperature": 0}
AUDITED: dict[str, dict[str, Any]] = {
    "ar": {"decoding": "ar", "audit": "score"},
    "self-speculation": {"decoding": "self_speculation", "block_length": 32},
    "score": diffusion(16, refinement_steps=3, audit="score"),
    "score-threshold": diffusion(32, threshold=0.6, audit="score"),
    "tolerance": diffusion(16, refinement_steps=2, audit=0.2),
    "exact": diffusion(16, refinement_steps=2, audit="exact"),
}


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("name", AUDITED)
def test_audit_logprob_is_the_mean_log_softmax_of_a_plain_causal_forward(
    golden_engine: Engine, reference: ReferenceLoops, name: str, temperature: float
) -> None:
    for max_tokens in (1, 7, 21, 40):
        requests = [
            (prompt, {**AUDITED[name], "temperature": temperature, "seed": 5, "max_tokens": max_tokens})
            for prompt in SOME[:4]
        ]
        for (prompt, _), one in zip(requests, answer(golden_engine, requests), strict=True):
            expected = mean_logprob(reference, prompt, one.token_ids)
            assert one.report.audit_logprob == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("fields", [{}, {"audit": "off"}, {"audit": None}])
def test_without_an_audit_there_is_no_score(golden_engine: Engine, fields: dict[str, Any]) -> None:
    assert ask(golden_engine, SOME[0], **diffusion(8, refinement_steps=2, **fields)).report.audit_logprob is None


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_score_changes_no_token(golden_engine: Engine, temperature: float) -> None:
    for prompt in SOME:
        fields = diffusion(16, refinement_steps=3, temperature=temperature, seed=11)
        plain = ask(golden_engine, prompt, **fields)
        scored = ask(golden_engine, prompt, **{**fields, "audit": "score"})
        assert scored.token_ids == plain.token_ids
        assert scored.finish_reason == plain.finish_reason


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("length", LENGTHS)
def test_an_exact_audit_gives_the_tokens_of_ar(golden_engine: Engine, length: int, temperature: float) -> None:
    sampling = {"temperature": temperature, "seed": 3}
    prompts = SOME if temperature == 0 else SOME[:3]
    expected = answer(golden_engine, [(prompt, {**AR, **sampling}) for prompt in prompts])
    for steps in {1, min(4, length)}:
        fields = diffusion(length, refinement_steps=steps, audit="exact", **sampling)
        for one, other in zip(answer(golden_engine, [(prompt, fields) for prompt in prompts]), expected, strict=True):
            assert one.token_ids == other.token_ids
            assert one.finish_reason == other.finish_reason


@pytest.mark.parametrize("length", LENGTHS)
def test_a_tolerance_close_to_one_is_exact(golden_engine: Engine, length: int) -> None:
    fields = diffusion(length, refinement_steps=1, audit=0.9999)
    answers = answer(golden_engine, [(prompt, fields) for prompt in SOME])
    for one, expected in zip(answers, answer(golden_engine, [(prompt, AR) for prompt in SOME]), strict=True):
        assert one.token_ids == expected.token_ids


def test_a_tiny_tolerance_is_no_audit(golden_engine: Engine) -> None:
    for prompt in SOME:
        fields = diffusion(16, refinement_steps=2)
        plain = ask(golden_engine, prompt, **fields)
        assert ask(golden_engine, prompt, **{**fields, "audit": 1e-30}).token_ids == plain.token_ids


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.7])
def test_every_token_has_its_share_of_the_best_probability(
    golden_engine: Engine, reference: ReferenceLoops, tolerance: float
) -> None:
    cut = 0
    for prompt in SOME:
        one = ask(golden_engine, prompt, **diffusion(16, refinement_steps=1, audit=tolerance))
        logits = ar_logits(reference, prompt, one.token_ids).clone()
        logits[:, 100] = -math.inf
        ratios = (logits.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0] - logits.max(-1).values).exp()
        assert float(ratios.min()) >= tolerance - 1e-4
        plain = ask(golden_engine, prompt, **diffusion(16, refinement_steps=1))
        cut += plain.token_ids != one.token_ids
    assert cut > 0, "no prompt put the audit to the test"


def test_stricter_audits_spend_more_forwards_and_score_better(golden_engine: Engine) -> None:
    reports = {}
    for audit in ("score", 0.1, 0.6, "exact"):
        requests = [(prompt, diffusion(16, refinement_steps=1, audit=audit)) for prompt in SOME]
        reports[audit] = [one.report for one in answer(golden_engine, requests)]
    forwards = [
        sum(report.forwards for report in group) / sum(r.completion_tokens for r in group) for group in reports.values()
    ]
    scores = [sum(report.audit_logprob or 0.0 for report in group) for group in reports.values()]
    assert forwards[0] < forwards[-1]
    assert scores[0] < scores[-1]


def test_self_speculation_reports_the_score_of_ar(golden_engine: Engine) -> None:
    for prompt in SOME[:4]:
        expected = ask(golden_engine, prompt, **AR, audit="score").report.audit_logprob
        one = ask(golden_engine, prompt, **{**MODES["self-speculation"], "max_tokens": 40})
        assert one.report.audit_logprob == pytest.approx(expected, abs=1e-5)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(TOKENS, st.data())
def test_what_an_audit_keeps(canvas: list[int], data: st.DataObject) -> None:
    length = len(canvas)
    picks = data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
    ratios = data.draw(st.lists(st.floats(-9, 0), min_size=length - 1, max_size=length - 1))
    tolerance = data.draw(st.floats(0.01, 0.99))
    assert kept_tokens(canvas, picks, ratios, "off") == kept_tokens(canvas, picks, ratios, "score") == length
    exact = [pick == token for pick, token in zip(picks, canvas[1:], strict=False)]
    assert kept_tokens(canvas, picks, None, "exact") == 1 + [*exact, False].index(False)
    within = [math.exp(ratio) >= tolerance for ratio in ratios]
    assert kept_tokens(canvas, picks, ratios, tolerance) == 1 + [*within, False].index(False)


def test_a_tolerance_needs_the_causal_pass() -> None:
    with pytest.raises(ValueError, match="needs the ratios"):
        kept_tokens([1, 2], [2, 3], None, 0.5)
