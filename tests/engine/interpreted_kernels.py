"""The engine on Triton kernels, interpreted, against the engine on the CPU's own path: the same answers. Run by
`test_kernels.py` in a process of its own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from engine.decoding import head
from engine.model.fixed_linear import FixedLinear
from engine.model.narrow_linear import NarrowLinear
from engine.sampling import pick
from kernels.switch import VARIABLE
from tests.engine.serving import MODES, PROMPTS, Answer, answer, last_layer_of_golden, load

SHORT = {"max_tokens": 6, "ignore_eos": True}
REQUESTS: list[dict[str, Any]] = []
for _place, _fields in enumerate(MODES.values()):
    _small = {"block_length": min(_fields["block_length"], 3)} if "block_length" in _fields else {}
    _sampled = {"temperature": 0.9, "seed": 40 + _place} if _place % 2 else {"temperature": 0}
    # Some may end; with one layer they do at once.
    REQUESTS.append(SHORT | _fields | _small | _sampled | {"ignore_eos": _place % 4 > 0})
REQUESTS += [
    SHORT | {"decoding": "ar", "temperature": 1.2, "seed": 7, "top_p": 0.7},
    SHORT | {"decoding": "self_speculation", "block_length": 4, "temperature": 0.8, "seed": 8, "top_k": 3},
    SHORT | {"decoding": "diffusion", "block_length": 4, "threshold": 0.5, "temperature": 0, "min_tokens": 6},
    SHORT | {"decoding": "diffusion", "block_length": 4, "audit": 0.5, "refinement_steps": 1, "temperature": 0},
    SHORT | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 4, "entropy_bound": 5.0, "temperature": 0},
    SHORT
    | {"decoding": "diffusion", "block_length": 5, "refinement_steps": 4, "remask": 0.5, "temperature": 0.7, "seed": 9},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return last_layer_of_golden(tmp_path_factory.mktemp("checkpoint"))


def answers(checkpoint: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    monkeypatch.setenv(VARIABLE, kernels)
    engine = load(checkpoint, kv_tokens=2048)
    assert engine.core.executor.keeps_logits == (kernels == "torch")
    return answer(engine, [(PROMPTS[place % len(PROMPTS)], fields) for place, fields in enumerate(REQUESTS)])


def test_answers_are_those_of_the_cpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGIT_ROWS", 3)
    filtered_rows: list[int] = []

    def counted(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        filtered_rows.append(logits.shape[0])
        return pick(logits, *arguments)

    monkeypatch.setattr(head, "pick", counted)
    want, got = (answers(checkpoint, kernels, monkeypatch) for kernels in ("torch", "triton"))
    assert max(filtered_rows) == 3, "top-k and top-p rows come a few at a time"
    for fields, one, other in zip(REQUESTS, want, got, strict=True):
        assert one.token_ids == other.token_ids, fields
        assert one.finish_reason == other.finish_reason
        assert one.report.forwards == other.report.forwards
        if one.report.audit_logprob is None:
            assert other.report.audit_logprob is None
        else:
            assert other.report.audit_logprob == pytest.approx(one.report.audit_logprob, abs=1e-4)
    assert any(len(one.token_ids) == 6 for one in want)


def test_two_ranks_with_a_part_of_the_vocabulary_each_give_the_same_answers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [REQUESTS[place] for place in (1, 4, 8, -6, -5, -4, -3, -2, -1)]
    asked = [(PROMPTS[place], fields) for place, fields in enumerate(some)]
    monkeypatch.setenv(VARIABLE, "torch")
    want = answer(load(checkpoint, kv_tokens=2048), asked)
    monkeypatch.setenv(VARIABLE, "triton")
    engine = load(checkpoint, kv_tokens=2048, tp=2)
    try:
        assert not engine.core.executor.keeps_logits
        got = answer(engine, asked)
    finally:
        engine.close()
    for fields, one, other in zip(some, want, got, strict=True):
        assert one.token_ids == other.token_ids, fields


def test_fixed_tiles_give_the_same_answers_and_the_same_bits_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [REQUESTS[1], REQUESTS[4]]
    want = answer(load(checkpoint, kv_tokens=2048), list(zip(PROMPTS, some, strict=False)))
    monkeypatch.setenv(VARIABLE, "triton")
    engine = load(checkpoint, kv_tokens=2048, batch_invariant=True, prefix_reuse=False)
    assert isinstance(engine.core.executor.model.layers[0].qkv, FixedLinear)
    together = answer(engine, list(zip(PROMPTS, some, strict=False)))
    for place, (one, other) in enumerate(zip(want, together, strict=True)):
        assert one.token_ids == other.token_ids
        alone = answer(engine, [(PROMPTS[place], some[place])])[0]
        assert alone.token_ids == other.token_ids
        assert alone.report.audit_logprob == other.report.audit_logprob, "to the bit"


def test_narrow_products_give_the_same_answers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts together are longer than a narrow product has rows, canvases are not."""
    some = [REQUESTS[place] for place in (1, 4, -3)]
    asked = [([*PROMPTS[place], *range(60, 90)], fields) for place, fields in enumerate(some)]
    want = answer(load(checkpoint, kv_tokens=2048), asked)
    monkeypatch.setenv(VARIABLE, "triton")
    engine = load(checkpoint, kv_tokens=2048, narrow_products=True)
    assert all(isinstance(product, NarrowLinear) for product in engine.core.executor.model.layers[0].products)
    for fields, one, other in zip(some, want, answer(engine, asked), strict=True):
        assert one.token_ids == other.token_ids, fields


def test_remask_takes_back_the_same_slots(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = SHORT | {
        "decoding": "diffusion",
        "block_length": 7,
        "refinement_steps": 6,
        "remask": 0.5,
        "temperature": 0,
    }
    shown: list[list[tuple[str, list[int | None]]]] = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv(VARIABLE, kernels)
        engine, seen = load(checkpoint, kv_tokens=2048), []
        engine.core.postprocessor.observer = lambda _, kind, tokens, seen=seen: seen.append((kind, tokens))
        answer(engine, [(PROMPTS[5], fields)])
        shown.append(seen)
    assert shown[0] == shown[1]
    drafts = [tokens for kind, tokens in shown[0] if kind == "draft"]
    assert any(
        one is not None and other is None
        for before, after in pairwise(drafts)
        for one, other in zip(before, after, strict=True)
    )
