"""The synchronous helper for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.llm import LLM
from engine.plan import Plan, diffusion
from engine.request import GenerationOptions
from tests.engine.serving import PROMPTS, ask, load
from tests.oracle.golden_cases import GOLDEN

SHORT = GenerationOptions(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(text_checkpoint: Path) -> LLM:
    return LLM(text_checkpoint, load(text_checkpoint).config)


@pytest.fixture(scope="module")
def bare() -> LLM:
    return LLM(GOLDEN, load().config)


def test_text_ids_and_messages_are_prompts(llm: LLM) -> None:
    tokenizer = llm.engine.tokenizer
    assert tokenizer is not None
    messages = [{"role": "user", "content": "add 1 and 2"}]
    text = "add 1 and 2"
    outputs = llm.generate([text, tokenizer.encode(text), messages, tokenizer.render_chat(messages)], SHORT)
    assert outputs[0].token_ids == outputs[1].token_ids
    assert outputs[2].token_ids == outputs[3].token_ids
    for output in outputs:
        assert len(output.token_ids) == 8
        assert output.text == tokenizer.decode(output.token_ids)
        assert output.report is not None


def test_answers_keep_the_order_of_the_prompts_and_options_may_differ(bare: LLM) -> None:
    options = [
        GenerationOptions(max_tokens=count, temperature=0, ignore_eos=True, decoding=decoding)
        for count, decoding in [(9, "ar"), (1, "diffusion"), (30, "self_speculation"), (4, "ar")]
    ]
    outputs = bare.generate(PROMPTS[:4], options)
    assert [len(output.token_ids) for output in outputs] == [9, 1, 30, 4]
    alone = ask(bare.engine, PROMPTS[2], decoding="ar", max_tokens=30, ignore_eos=True)
    assert outputs[2].token_ids == alone.token_ids


def test_a_plan_may_be_given_for_each_prompt(bare: LLM) -> None:
    plans = [None, Plan(ladder=(diffusion(8, 2),))]
    outputs = bare.generate(PROMPTS[:2], SHORT, plans=plans)
    steps = [output.report.denoise_steps for output in outputs if output.report is not None]
    assert steps == [0, 2]


def test_a_checkpoint_without_tokenizer_takes_ids_only(bare: LLM) -> None:
    assert bare.generate([PROMPTS[0]], SHORT)[0].text == ""
    for prompt in ("text", [{"role": "user", "content": "hi"}]):
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            bare.generate([prompt], SHORT)


def test_a_bad_prompt_is_refused_before_any_forward(bare: LLM) -> None:
    forwards = bare.engine.stats().forwards
    with pytest.raises(InvalidRequest, match="token id 999"):
        bare.generate([PROMPTS[0], [1, 999]], SHORT)
    assert bare.engine.stats().forwards == forwards
    assert len(bare.generate([PROMPTS[0]], SHORT)) == 1


def test_as_many_options_as_prompts_are_needed(bare: LLM) -> None:
    with pytest.raises(ValueError, match="zip"):
        bare.generate(PROMPTS[:2], [SHORT])


def test_the_progress_bar_can_be_shown(bare: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    bare.generate(PROMPTS[:2], SHORT, progress=True)
    bare.generate(PROMPTS[:2], SHORT, progress=False)
    assert bare.generate([], SHORT) == []
