"""One stream, line by line."""

from __future__ import annotations

import json

import pytest

from locustfiles.stream import StreamReader


def data(event: dict[str, object]) -> bytes:
    return f"data: {json.dumps(event)}\n".encode()


def chat(text: str) -> bytes:
    return data({"choices": [{"index": 0, "delta": {"content": text}}]})


def test_blocks_are_timed_by_their_text_only() -> None:
    reader = StreamReader()
    reader.take(data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 1.0)
    reader.take(b"\n", 1.1)
    reader.take(chat("one "), 2.0)
    reader.take(b": a comment\n", 2.1)
    reader.take(chat("two"), 2.25)
    reader.take(data({"choices": [{"delta": {}, "finish_reason": "stop"}]}), 3.0)
    reader.take(data({"choices": [], "usage": {"completion_tokens": 7}, "stepdial": {"forwards": 4}}), 3.0)
    assert not reader.finished
    reader.take(b"data: [DONE]\r\n", 3.5)
    assert reader.finished
    assert reader.text == "one two"
    assert reader.block_s == [2.0, 2.25]
    assert reader.gaps_ms == pytest.approx([250.0])
    assert (reader.usage, reader.said) == ({"completion_tokens": 7}, {"forwards": 4})


def test_completions_have_their_text_elsewhere() -> None:
    reader = StreamReader()
    reader.take(data({"choices": [{"text": "abc", "finish_reason": None}]}), 1.0)
    assert reader.text == "abc"
    assert reader.block_s == [1.0]


def test_an_error_inside_a_stream_is_kept() -> None:
    reader = StreamReader()
    reader.take(data({"error": {"message": "the engine stopped", "code": "internal_error"}}), 1.0)
    assert reader.error == "the engine stopped"


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        StreamReader().take(b"data: {oh no\n", 1.0)
