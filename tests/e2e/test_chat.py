"""The official openai client, unchanged, against the real application."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from engine.tiny.tasks import generate

MODEL = "stepdial-tiny"
TASKS = list(generate("test", 8, seed=3))
MESSAGES: Any = TASKS[0].messages
FIELDS = {
    "decoding", "block_length", "refinement_steps", "threshold", "plan", "denoise_steps", "draft_steps", "forwards",
    "tokens_per_forward", "accelerator_ms", "audit_logprob", "seed", "slo_ms", "predicted_p95_ms", "expected_quality",
    "queue_ms", "latency_ms", "slo_met", "replica", "reason",
}  # fmt: skip


def test_models(client: OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).owned_by == "stepdial"


def test_a_chat_says_what_it_got(caller: OpenAI) -> None:
    raw = caller.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        seed=1234,
        max_tokens=48,
        extra_headers={"x-request-id": "mine-1"},
    )
    answer = raw.parse()
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers.get_list("x-request-id") == ["mine-1"]
    assert answer.id == "chatcmpl-mine-1"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    said: dict[str, Any] = answer.stepdial  # type: ignore[attr-defined]
    assert set(said) >= FIELDS
    assert said["seed"] == 1234
    assert said["slo_met"] is None
    assert said["forwards"] >= 1
    assert said["plan"][0]["from_token"] == 0
    assert raw.headers["x-stepdial-decoding"] == said["decoding"]
    assert raw.headers["x-stepdial-replica"] == said["replica"]
    assert said["reason"]


@pytest.mark.parametrize("decoding", ["ar", "diffusion", "self_speculation"])
def test_a_stream_gives_the_same_text_as_a_whole_answer(caller: OpenAI, decoding: str) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": MESSAGES, "temperature": 0.7, "seed": 5, "max_tokens": 70,
        "extra_body": {"decoding": decoding, "min_tokens": 70, "cache_salt": f"{decoding}"},
    }  # fmt: skip
    whole = caller.chat.completions.create(**asked)
    chunks = list(caller.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 70
    assert set(last.stepdial) >= FIELDS  # type: ignore[attr-defined]
    assert 2 < len(chunks) < 70, "a chunk per block or burst, not per token"


def test_without_include_usage_the_last_chunk_has_choices_and_says_what_it_got(url: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5, "stream": True}
    lines = [line for line in httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason": "' in lines[-2]
    assert '"stepdial"' in lines[-2]
    assert all('"usage"' not in line for line in lines)


def test_usage_on_every_chunk_when_asked(client: OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=40, stream=True, stream_options=options,
        extra_body={"min_tokens": 40, "decoding": "ar"},
    )  # fmt: skip
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == 40
    assert len(counts) >= 4


def test_content_as_parts_equals_content_as_text(client: OpenAI) -> None:
    text = str(MESSAGES[-1]["content"])
    parts: Any = [*MESSAGES[:-1], {"role": "user", "content": [{"type": "text", "text": text}]}]
    answers = [
        client.chat.completions.create(model=MODEL, messages=messages, temperature=0, seed=1, max_tokens=40)
        for messages in (MESSAGES, parts)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_thinking_is_told_apart_from_the_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": MESSAGES, "temperature": 0, "seed": 1, "max_tokens": 40,
        "extra_body": {"enable_thinking": True, "max_thinking_tokens": 9, "min_tokens": 40, "decoding": "ar"},
    }  # fmt: skip
    message: Any = client.chat.completions.create(**asked).choices[0].message
    assert message.reasoning_content
    assert message.content
    thinking = text = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta: Any = chunk.choices[0].delta
        thinking += getattr(delta, "reasoning_content", None) or ""
        text += delta.content or ""
    assert (thinking, text) == (message.reasoning_content, message.content)


def test_completions_of_text_and_of_token_ids(client: OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="words: pear apple", temperature=0, max_tokens=24)
    assert text.usage is not None
    assert text.usage.completion_tokens <= 24
    ids = client.completions.create(
        model=MODEL, prompt=[1, 300, 301], temperature=0, extra_body={"return_token_ids": True, "ignore_eos": True}
    )
    assert ids.usage is not None
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens) == (3, 16), "16 is OpenAI's default"
    assert len(ids.choices[0].token_ids) == 16  # type: ignore[attr-defined]
    stream = client.completions.create(model=MODEL, prompt=[1, 300], max_tokens=20, stream=True, temperature=0)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")


def test_a_stop_string_is_never_sent(client: OpenAI) -> None:
    free = client.completions.create(model=MODEL, prompt="a b c", temperature=0, max_tokens=60, seed=2,
                                     extra_body={"decoding": "ar", "min_tokens": 60})  # fmt: skip
    whole = free.choices[0].text
    stop = whole[10:12]
    stopped = client.completions.create(model=MODEL, prompt="a b c", temperature=0, max_tokens=60, seed=2, stop=[stop],
                                        extra_body={"decoding": "ar", "min_tokens": 60})  # fmt: skip
    assert stopped.choices[0].text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_returned_seed_and_plan_repeat_an_answer(client: OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=1.0, max_tokens=48,
                                           extra_body={"cache_salt": "a"})  # fmt: skip
    said = first.stepdial  # type: ignore[attr-defined]
    again = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=1.0, max_tokens=48, seed=said["seed"],
        extra_body={"plan": said["plan"], "cache_salt": "b"},
    )  # fmt: skip
    assert again.choices[0].message.content == first.choices[0].message.content


async def test_one_request_id_for_many_requests_is_fine(url: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 40, "ignore_eos": True, "temperature": 0, "seed": 1}
    async with httpx.AsyncClient(timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post(f"{url}/v1/chat/completions", json=body, headers={"x-request-id": "same"}) for _ in range(6))
        )
    assert [answer.status_code for answer in answers] == [200] * 6
    assert {answer.headers["x-request-id"] for answer in answers} == {"same"}


def test_policies_of_diffusion_are_followed_reported_and_repeated(client: OpenAI) -> None:
    policies = {"entropy_bound": 0.5, "remask": 0.2}

    def ask(**fields: Any) -> Any:
        body = {"ignore_eos": True, **fields}
        return client.chat.completions.create(
            model=MODEL, messages=TASKS[1].messages, temperature=0, max_tokens=40, extra_body=body,  # type: ignore[arg-type]
        )  # fmt: skip

    first = ask(decoding="diffusion", block_length=16, refinement_steps=8, **policies)
    (entry,) = first.stepdial["plan"]
    assert {name: entry[name] for name in policies} == policies
    assert "entropy bound 0.5, remask 0.2" in first.stepdial["reason"]
    again = ask(plan=first.stepdial["plan"])
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.stepdial["denoise_steps"] == first.stepdial["denoise_steps"] <= 3 * 8


async def test_32_mixed_requests_at_once_are_what_they_are_alone(url: str) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    modes: list[dict[str, Any]] = [
        {"decoding": "ar"}, {"decoding": "self_speculation"}, {"decoding": "diffusion", "refinement_steps": 2},
        {"decoding": "diffusion", "block_length": 8, "threshold": 0.9},
    ]  # fmt: skip

    async def ask(index: int, salt: str) -> tuple[str | None, str]:
        answer = await client.chat.completions.create(
            model=MODEL, messages=TASKS[index % 8].messages, temperature=0.5 * (index % 2), seed=index,  # type: ignore[arg-type]
            max_tokens=24 + index, extra_body={**modes[index % 4], "cache_salt": f"{salt}{index}"},
        )  # fmt: skip
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    together = await asyncio.gather(*(ask(index, "together") for index in range(32)))
    alone = [await ask(index, "alone") for index in range(0, 32, 5)]
    assert [together[index] for index in range(0, 32, 5)] == alone
