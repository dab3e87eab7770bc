"""Offline batches: a row per line in input order, and what is wrong with a line stays in its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.cli import app
from engine.llm import LLM
from engine.run_batch import run_batch, run_batch_files
from tests.engine.serving import MODES, PROMPTS, ask, load
from tests.oracle.golden_cases import GOLDEN

KEYS = ["id", "text", "token_ids", "finish_reason", "denoise_steps", "forwards", "stepdial", "error"]


@pytest.fixture(scope="module")
def bare() -> LLM:
    return LLM(GOLDEN, load().config)


@pytest.fixture(scope="module")
def llm(text_checkpoint: Path) -> LLM:
    return LLM(text_checkpoint, load(text_checkpoint).config)


def row(llm: LLM, line: Any) -> dict[str, Any]:
    text = line if isinstance(line, str) else json.dumps(line)
    rows = run_batch(llm, [text], progress=False)
    assert len(rows) == 1
    assert sorted(rows[0]) == sorted(KEYS)
    return rows[0]


def test_rows_come_in_the_order_of_the_lines_whatever_takes_long(bare: LLM) -> None:
    lines = [
        {
            "id": place,
            "prompt_token_ids": PROMPTS[place],
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            **mode,
        }
        for place, (count, mode) in enumerate(zip((40, 1, 20, 33, 2, 11, 8, 5, 17, 3), MODES.values(), strict=True))
    ]
    rows = run_batch(bare, [json.dumps(line) for line in lines], progress=False)
    assert [one["id"] for one in rows] == list(range(len(lines)))
    for one, line in zip(rows, lines, strict=True):
        assert one["error"] is None
        assert len(one["token_ids"]) == line["max_tokens"]
        fields = {name: line[name] for name in line if name not in ("id", "prompt_token_ids")}
        alone = ask(bare.engine, line["prompt_token_ids"], **fields)
        assert one["token_ids"] == alone.token_ids
        assert one["denoise_steps"] == alone.report.denoise_steps
        assert one["stepdial"]["forwards"] == one["forwards"]
        assert one["text"] == ""
    json.dumps(rows, allow_nan=False)


GOOD = {"id": "good", "prompt_token_ids": [1, 60], "max_tokens": 3, "temperature": 0}
BAD: list[tuple[Any, str, str]] = [
    ("{not json", "body", "line 2 is not JSON"),
    ("[1, 2]", "body", "must be a JSON object"),
    ('"text"', "body", "must be a JSON object"),
    ("[" * 100_000, "body", "line 2 is not JSON"),
    ('{"prompt_token_ids": [1], "seed": ' + "9" * 5000 + "}", "body", "line 2 is not JSON"),
    ('{"prompt_token_ids": [1], "temperature": NaN}', "temperature", "finite"),
    ({"max_tokens": 3}, "prompt", "exactly one of"),
    ({"prompt": [1], "prompt_token_ids": [1]}, "prompt", "exactly one of"),
    ({"prompt_token_ids": []}, "prompt", "empty"),
    ({"prompt_token_ids": [1, 999]}, "prompt", "999"),
    ({"prompt_token_ids": [1, "2"]}, "prompt_token_ids", "token ids"),
    ({"prompt_token_ids": [1, True]}, "prompt_token_ids", "token ids"),
    ({"prompt_token_ids": "ids"}, "prompt_token_ids", "token ids"),
    ({"prompt": "text"}, "prompt", "no tokenizer"),
    ({"prompt_token_ids": [1] * 2000}, "prompt", "at most 1023"),
    ({"prompt_token_ids": [1], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"prompt_token_ids": [1], "block_length": 99}, "block_length", "1 to 32"),
    ({"prompt_token_ids": [1], "decoding": "magic"}, "decoding", "'auto'"),
    ({"prompt_token_ids": [1], "min_p": 0.3}, "min_p", "not supported"),
    ({"prompt_token_ids": [1], "stop": ["x"]}, "stop", "tokenizer"),
    ({"prompt_token_ids": [1], "plan": [{"from_token": 3}]}, "plan", "plan.0"),
]


@pytest.mark.parametrize(("line", "field", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_line_is_reported_in_its_row_and_the_rest_is_done(bare: LLM, line: Any, field: str, said: str) -> None:
    bad = line if isinstance(line, str) else json.dumps({"id": "bad", **line})
    rows = run_batch(bare, [json.dumps(GOOD), bad, "", json.dumps(GOOD)], progress=False)
    assert len(rows) == 3
    assert rows[0]["token_ids"] == rows[2]["token_ids"] != []
    assert rows[0]["error"] is None
    assert rows[1]["error"]["field"] == field
    assert said in rows[1]["error"]["message"]
    assert rows[1]["token_ids"] is None
    assert rows[1]["id"] == (None if isinstance(line, str) else "bad")


def test_messages_and_text_and_stop_strings_need_a_tokenizer_and_use_it(llm: LLM) -> None:
    tokenizer = llm.engine.tokenizer
    assert tokenizer is not None
    messages = [{"role": "user", "content": [{"type": "text", "text": "sort a b"}]}]
    fields = {"max_tokens": 20, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    chat = row(llm, {"messages": messages, **fields})
    ids = row(llm, {"prompt_token_ids": tokenizer.render_chat(messages), **fields})
    assert chat["token_ids"] == ids["token_ids"]
    assert chat["text"] == tokenizer.decode(chat["token_ids"])
    thinking = row(llm, {"messages": messages, "chat_template_kwargs": {"enable_thinking": True}, **fields})
    assert thinking["token_ids"] == row(llm, {"messages": messages, "enable_thinking": True, **fields})["token_ids"]
    assert thinking["token_ids"] != chat["token_ids"]
    stop = next(character for character in chat["text"] if character != "\ufffd")
    stopped = row(llm, {"messages": messages, **fields, "stop": stop})
    assert stopped["text"] == chat["text"].split(stop)[0]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [1, 2]}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": 3}, "chat_template_kwargs"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_bad_chats_name_their_field(llm: LLM, line: dict[str, Any], field: str) -> None:
    assert row(llm, {"max_tokens": 2, **line})["error"]["field"] == field


@pytest.mark.parametrize("name", ["prompt", "self", "messages", "template_options"])
def test_names_for_the_template_cannot_break_a_batch(llm: LLM, name: str) -> None:
    line = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "chat_template_kwargs": {name: "y"}}
    assert row(llm, line)["error"] is None


def test_files_with_odd_bytes_and_ids(bare: LLM, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps({**GOOD, "id": "\ud800"}).encode()
    source.write_bytes(b"\xef\xbb\xbf" + good + b'\n{"id": "\xff"}\n\n' + json.dumps(GOOD).encode())
    assert run_batch_files(bare, source, target, progress=False) == (2, 1)
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in rows] == ["\ud800", None, "good"]
    assert "not UTF-8" in rows[1]["error"]["message"]


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(GOOD) + "\nbad\n")
    asked = ["run-batch", "--input", str(source), "--output", str(target), "--threads", "1", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*asked, "--model", str(GOLDEN)])
    assert done.exit_code == 0, done.output
    assert "1 answered, 1 with an error" in done.output
    assert len(target.read_text().splitlines()) == 2
    missing = CliRunner().invoke(app, [*asked, "--model", str(tmp_path)])
    assert missing.exit_code == 1
    assert "error:" in missing.output
