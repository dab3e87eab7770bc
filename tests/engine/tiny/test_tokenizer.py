"""The tokenizer that ships: the family's ids and chat format, and every text survives it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import engine.tiny
from engine.tiny.tasks import generate
from engine.tiny.tokenizer import CHAT_TEMPLATE, build, render, words

CHECKPOINT = Path(engine.tiny.__file__).parent / "checkpoint"


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def loaded() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_ids_of_the_family(raw: Tokenizer) -> None:
    known = {"<s>": 1, "</s>": 2, "<|im_start|>": 10, "<|im_end|>": 11, "<think>": 12, "</think>": 13}
    assert {token: raw.token_to_id(token) for token in known} == known


def test_ids_below_100_are_special_and_100_is_nothing(raw: Tokenizer) -> None:
    vocabulary = raw.get_vocab()
    assert 100 not in vocabulary.values()
    assert raw.id_to_token(100) is None
    reserved = {token for token, index in vocabulary.items() if index < 100}
    assert len(reserved) == 100
    assert reserved == {token.content for token in raw.get_added_tokens_decoder().values()}
    assert len(vocabulary) < 1000


def test_roles_and_words_are_one_token(raw: Tokenizer) -> None:
    for word in ("system", "user", "assistant", "\n", "7", "Alice", " Alice", "apple", " apple", "\n        "):
        assert len(raw.encode(word, add_special_tokens=False).ids) == 1, word


def test_digits_are_single_tokens(raw: Tokenizer) -> None:
    assert raw.encode("4821", add_special_tokens=False).tokens == list("4821")


@settings(max_examples=300)
@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert 100 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tasks_need_no_bytes_but_digits_and_punctuation(raw: Tokenizer) -> None:
    for task in generate("test", 200, 3):
        letters = [t for t in raw.encode(task.answer, add_special_tokens=False).tokens if len(t) == 1 and t.isalpha()]
        assert set(letters) <= {"Ċ", "Ġ", "a"}, task.answer  # line break, blank, and the word "a"


def test_plain_text_gets_a_bos_and_the_chat_template_none(loaded: PreTrainedTokenizerBase) -> None:
    assert loaded("hi").input_ids[0] == 1
    chat = loaded.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert chat["input_ids"][0] == 10


USER = {"role": "user", "content": "hi"}
EMPTY_SYSTEM = "<|im_start|>system\n<|im_end|>\n"
FIRST_TURN = "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([USER], {}, EMPTY_SYSTEM + FIRST_TURN + "<|im_start|>assistant\n<think></think>"),
        ([USER], {"enable_thinking": True}, EMPTY_SYSTEM + FIRST_TURN + "<|im_start|>assistant\n<think>\n"),
        (
            [{"role": "system", "content": "Be brief."}, USER],
            {},
            "<|im_start|>system\nBe brief.<|im_end|>\n" + FIRST_TURN + "<|im_start|>assistant\n<think></think>",
        ),
        (
            [USER, {"role": "assistant", "content": "yes"}, USER],
            {},
            EMPTY_SYSTEM + FIRST_TURN + "<|im_start|>assistant\n<think></think>yes<|im_end|>\n" + FIRST_TURN
            + "<|im_start|>assistant\n<think></think>",
        ),
        (
            [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\nyes"}, USER],
            {},
            EMPTY_SYSTEM + FIRST_TURN + "<|im_start|>assistant\n<think></think>yes<|im_end|>\n" + FIRST_TURN
            + "<|im_start|>assistant\n<think></think>",
        ),
    ],
)  # fmt: skip
def test_chat_format(
    loaded: PreTrainedTokenizerBase, messages: list[dict[str, str]], options: dict[str, bool], expected: str
) -> None:
    rendered = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    assert rendered == expected


def test_training_renders_as_the_template_does(loaded: PreTrainedTokenizerBase) -> None:
    for task in generate("test", 60, 1):
        expected = loaded.apply_chat_template(task.messages, tokenize=False, add_generation_prompt=True)
        assert render(task.messages) == expected


def test_files_are_what_the_builder_writes(raw: Tokenizer) -> None:
    assert (CHECKPOINT / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert build(words()).get_vocab() == raw.get_vocab()
