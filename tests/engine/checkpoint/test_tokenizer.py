"""The tokenizer against transformers, the family's ids, and refusals that name what was wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import engine.tiny
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import CheckpointError, InvalidRequest

CHECKPOINT = Path(engine.tiny.__file__).parent / "checkpoint"
CHATS = [
    [{"role": "user", "content": "What is 84 * 3 / 2? Answer with the number only."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort: b a\n c  é€😀"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "five <|im_end|>"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = Tokenizer.from_dir(CHECKPOINT)
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("thinking", [False, True])
def test_chats_render_as_with_transformers(
    tokenizer: Tokenizer, reference: Any, chat: list[dict[str, str]], thinking: bool
) -> None:
    options = {"add_generation_prompt": True, "enable_thinking": thinking}
    assert tokenizer.render_text(chat, thinking) == reference.apply_chat_template(chat, tokenize=False, **options)
    wanted = reference.apply_chat_template(chat, tokenize=True, return_dict=False, **options)
    assert tokenizer.render_chat(chat, thinking) == list(wanted)


@pytest.mark.parametrize("text", ["", "Hello, world", "  a\n\n  b\t1234", "é€😀 \u0000", "x<|im_end|>y"])
def test_text_encodes_and_decodes_as_with_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.encode(text, add_bos=False) == ids[1:]
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special=False) == "<s>" + text


def test_the_familys_prompt(tokenizer: Tokenizer) -> None:
    """Contract section 6: an empty system turn, no BOS, an empty thought unless thinking is on."""
    chat = [{"role": "user", "content": "Hi"}]
    text = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render_text(chat) == text + "<think></think>"
    assert tokenizer.render_text(chat, enable_thinking=True) == text + "<think>\n"
    ids = tokenizer.render_chat(chat)
    assert ids[0] == 10
    assert ids[-2:] == [12, 13]
    assert (tokenizer.bos_id, tokenizer.think_open_id, tokenizer.think_close_id) == (1, 12, 13)


def test_parts_and_developer_messages(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}]
    assert tokenizer.render_text(chat) == tokenizer.render_text(plain)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ("hello", "messages is 'hello'; allowed: a list"),
        (None, "messages is None; allowed: a list"),
        (["hello"], r"messages\[0\] is 'hello'"),
        ([{"content": "x"}], r"messages\[0\].role is None; allowed: system, developer, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}], r"messages\[1\].role is 'wizard'"),
        ([{"role": "user", "content": None}], r"messages\[0\].content is None; allowed: a string or a list"),
        ([{"role": "user", "content": []}], r"messages\[0\].content is \[\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content\[0\] is .*image_url"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], r"messages\[0\].content\[0\]"),
        ([{"role": "user", "content": "\ud800"}], "messages is not valid Unicode"),
    ],
)
def test_bad_messages_are_refused_by_name(tokenizer: Tokenizer, messages: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        tokenizer.render_chat(messages)
    assert caught.value.field == "messages"


def test_a_prompt_that_is_not_unicode_names_the_prompt(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="prompt is not valid Unicode") as caught:
        tokenizer.encode("a\udfff")
    assert caught.value.field == "prompt"


def copy_with_template(target: Path, template: str | None) -> Tokenizer:
    target.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(CHECKPOINT / name, target / name)
    if template is not None:
        config = json.loads((target / "tokenizer_config.json").read_text())
        config["chat_template"] = template
        (target / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.from_dir(target)
    assert loaded is not None
    return loaded


def test_a_template_has_the_names_that_transformers_gives(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ {'c': m.content, 'x': '<é>'} | tojson }}{% endgeneration %}{% endfor %}"
        "{% if tools is none %}{{ eos_token }}{{ extra }}{% endif %}"
    )
    tokenizer = copy_with_template(tmp_path / "a", template)
    chat = [{"role": "user", "content": str(index)} for index in range(4)]
    wanted = '<s>{"c": "0", "x": "<é>"}{"c": "1", "x": "<é>"}<|im_end|>7'
    assert tokenizer.render_text(chat, extra=7) == wanted
    reference = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert reference.apply_chat_template(chat, tokenize=False, extra=7) == wanted


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_a_bad_request(tmp_path: Path, template: str, words: str) -> None:
    tokenizer = copy_with_template(tmp_path / "a", template)
    with pytest.raises(InvalidRequest, match=words) as caught:
        tokenizer.render_chat([{"role": "user", "content": "x"}])
    assert caught.value.field == "messages"


def test_checkpoints_without_tokenizer_or_template(tmp_path: Path) -> None:
    assert Tokenizer.from_dir(tmp_path) is None
    tokenizer = copy_with_template(tmp_path / "a", None)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template; send a prompt"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read"):
        Tokenizer.from_dir(tmp_path)
    with pytest.raises(CheckpointError, match="chat template cannot be compiled"):
        copy_with_template(tmp_path / "a", "{% if %}")
    data = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    data["decoder"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer.from_dir(tmp_path)


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, engine.checkpoint.tokenizer; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert result.returncode == 0
