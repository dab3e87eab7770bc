"""Requests in, answers out: OpenAI's own types accept what is sent."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.openai_types import Answer, ChatCompletionRequest, CompletionRequest, usage
from engine.errors import InvalidRequest
from engine.request import parse_options

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: Any) -> ChatCompletionRequest:
    parsed = parse_options(ChatCompletionRequest, {**CHAT, **fields})
    assert isinstance(parsed, ChatCompletionRequest)
    return parsed


def test_what_evaluation_clients_send_is_fine() -> None:
    request = chat(
        temperature=0, seed=1234, stop=None, max_completion_tokens=7, stream_options=None, nextEdit=True, user="u",
        repetition_penalty=1.0, logprobs=None, parallel_tool_calls=True,
    )  # fmt: skip
    assert request.max_tokens == 7
    assert request.options() == {"temperature": 0, "seed": 1234, "stop": [], "max_tokens": 7}


def test_a_threshold_of_null_is_not_an_absent_one() -> None:
    assert "threshold" in chat(threshold=None).options()
    assert "threshold" not in chat().options()


def test_thinking_by_either_name() -> None:
    assert chat(chat_template_kwargs={"enable_thinking": True, "x": 1}).template_options() == (True, {"x": 1})
    assert chat(enable_thinking=True).template_options() == (True, {})
    assert chat().template_options() == (False, {})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"model": 3}, "model"),
        ({"latency_slo_ms": -1}, "latency_slo_ms"), ({"temperature": 3}, "temperature"), ({"n": 2}, "n"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"), ({"logprobs": True}, "logprobs"),
        ({"stream": "maybe"}, "stream"), ({"service_tier": 4}, "service_tier"), ({"audit": 2}, "audit"),
        ({"stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize("prompt", ["text", ["text"], [5, 6], [[5, 6]]])
def test_prompt_forms(prompt: Any) -> None:
    request = CompletionRequest(model="m", prompt=prompt)
    assert request.one_prompt() in ("text", [5, 6])


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [1, "a"], [True]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        CompletionRequest(model="m", prompt=prompt).one_prompt()


def test_answers_are_openais() -> None:
    answer = Answer(True, "1", "m", 7, "default")
    spent = usage(3, 4, 2)
    opening = answer.opening()
    assert opening is not None
    assert ChatCompletionChunk.model_validate(opening).choices[0].delta.role == "assistant"
    middle = ChatCompletionChunk.model_validate(answer.chunk("text"))
    assert middle.choices[0].delta.content == "text"
    assert middle.choices[0].delta.role is None
    last = ChatCompletionChunk.model_validate(answer.chunk("", "stop", extra={"stepdial": {}}))
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.content is None
    end = ChatCompletionChunk.model_validate(answer.usage_chunk(spent, {"stepdial": {"forwards": 2}}))
    assert end.choices == []
    assert end.usage is not None
    assert end.usage.total_tokens == 7
    whole = ChatCompletion.model_validate(answer.whole("text", "length", spent, None, {"stepdial": {}}))
    assert whole.choices[0].message.content == "text"
    assert whole.service_tier == "default"
    text = Completion.model_validate(Answer(False, "1", "m", 7, None).whole("text", "stop", spent, [1], {}))
    assert text.choices[0].text == "text"
