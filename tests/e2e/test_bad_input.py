"""Bad input: a clear 400 that names the field, in OpenAI's shape, and nothing else is disturbed."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

MODEL = "stepdial-tiny"
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": MODEL, "messages": HELLO, "max_tokens": 8}

BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"model": "gpt-17"}, "model"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
    ({"latency_slo_ms": -5}, "latency_slo_ms"),
    ({"latency_slo_ms": "soon"}, "latency_slo_ms"),
    ({"ttft_slo_ms": 0}, "ttft_slo_ms"),
    ({"refinement_steps": 0}, "refinement_steps"),
    ({"refinement_steps": 33}, "refinement_steps"),
    ({"block_length": 8, "refinement_steps": 9}, "refinement_steps"),
    ({"block_length": 64}, "block_length"),
    ({"threshold": 1.5}, "threshold"),
    ({"decoding": "diffusion", "entropy_bound": -1}, "entropy_bound"),
    ({"remask": 0.5}, "remask"),
    ({"audit": "loud"}, "audit"),
    ({"decoding": "magic"}, "decoding"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 2}, "n"),
    ({"seed": "x"}, "seed"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": True}, "logprobs"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"stream": "perhaps"}, "stream"),
    ({"plan": [{"from_token": 3}]}, "plan"),
    ({"stop_token_ids": [99_999]}, "stop_token_ids"),
    ({"min_expected_quality": 2}, "min_expected_quality"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named(url: str, fields: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, **fields}, timeout=30)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"), ([1, 99_999], "99999"), ([-1], "-1"), (["a", "b"], "2 prompts"), ([1, "a"], "mixed"),
        (7, "prompt"), (None, "prompt"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_named(url: str, prompt: Any, message: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": prompt}, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b"null", b"[" * 100_000])
def test_a_body_that_is_no_object_is_400(address: str, body: bytes) -> None:
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"


def test_other_statuses_have_the_same_shape(address: str) -> None:
    large = httpx.post(f"{address}/v1/completions", content=b" " * (2 << 20), timeout=30)
    answers = [
        large,
        httpx.get(f"{address}/nowhere"),
        httpx.get(f"{address}/v1/completions"),
        httpx.get(f"{address}/v1/models/x"),
    ]
    assert [answer.status_code for answer in answers] == [413, 404, 405, 404]
    for answer in answers:
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


def test_a_bad_header_is_named(address: str) -> None:
    headers = {"x-stepdial-latency-slo-ms": "soon"}
    answer = httpx.post(f"{address}/v1/chat/completions", json=CHAT, headers=headers, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-stepdial-latency-slo-ms"


def test_openais_client_raises_its_own_error(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-17", messages=HELLO)  # type: ignore[arg-type]
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"


def test_unknown_fields_are_ignored(url: str) -> None:
    answer = httpx.post(
        f"{url}/v1/chat/completions", json={**CHAT, "nextEdit": True, "metadata": {"a": "b"}}, timeout=30
    )
    assert answer.status_code == 200
