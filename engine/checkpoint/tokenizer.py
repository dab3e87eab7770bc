"""Text to token ids and back, on the checkpoint's `tokenizer.json` (contract section 6).

Built on the `tokenizers` package alone: importing transformers would cost seconds at every start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from engine.checkpoint.chat_template import ChatTemplate, check_messages
from engine.checkpoint.json_file import read_json
from engine.errors import CheckpointError, InvalidRequest

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class Tokenizer:
    """A byte-level tokenizer with the family's special tokens and chat template.

    Attributes:
        bos_id: the id that plain text starts with; None where the files name none.
        think_open_id, think_close_id: ids of `<think>` and `</think>`; None where the vocabulary has none.
        vocab_size: one more than the largest id.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], template: str | None) -> None:
        """`special_tokens` maps `bos_token`, ... to their text; `template` is the chat template's source."""
        if backend.decoder is None or not _is_byte_level(backend):
            raise CheckpointError(
                "tokenizer.json has no ByteLevel decoder; allowed: the family's byte-level tokenizers"
            )
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}
        self._template = None if template is None else ChatTemplate(template, special_tokens)
        self.bos_id = self._id_of(special_tokens.get("bos_token"))
        self.think_open_id = self._id_of(THINK_OPEN)
        self.think_close_id = self._id_of(THINK_CLOSE)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @staticmethod
    def from_dir(path: str | Path) -> Tokenizer | None:
        """The tokenizer of a checkpoint directory; None where it has no `tokenizer.json`.

        The chat template is `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
        Raises CheckpointError where a file cannot be read.
        """
        directory = Path(path)
        file = directory / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise CheckpointError(f"{file} cannot be read: {error}") from None
        config = {**read_json(directory / "special_tokens_map.json"), **read_json(directory / "tokenizer_config.json")}
        special_tokens = {name: _token_text(config[name]) for name in SPECIAL_TOKEN_NAMES if config.get(name)}
        template_file = directory / "chat_template.jinja"
        template = (
            template_file.read_text(encoding="utf-8")
            if template_file.is_file()
            else _configured_template(config.get("chat_template"))
        )
        return Tokenizer(backend, special_tokens, template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_bos: bool = True, field: str = "prompt") -> list[int]:
        """Ids of plain text, after BOS as the family's models expect it. Special tokens in the text become their ids.

        Raises InvalidRequest naming `field` where the text has a lone surrogate, which no bytes can hold.
        """
        try:
            text.encode()  # the package would call such text "not a string"
        except UnicodeEncodeError as error:
            raise InvalidRequest(field, f"{field} is not valid Unicode: {error.reason}, offset {error.start}") from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def render_text(self, messages: Any, /, enable_thinking: bool = False, **options: Any) -> str:
        """The prompt of a chat as text. `options` are further names for the template.

        Raises InvalidRequest naming `messages`.
        """
        if self._template is None:
            raise InvalidRequest("messages", "messages: this model has no chat template; send a prompt instead")
        return self._template.render(check_messages(messages), enable_thinking, options)

    def render_chat(self, messages: Any, /, enable_thinking: bool = False, **options: Any) -> list[int]:
        """The prompt of a chat as ids: the template decides about BOS, none is added (contract section 6).

        Args:
            messages: dicts with `role` and `content`, a string or a list of text parts.

        Raises InvalidRequest naming `messages` for a wrong role or part, or where the template refuses them.
        """
        return self.encode(self.render_text(messages, enable_thinking, **options), add_bos=False, field="messages")

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary (the mask among them) have none."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, perhaps part of a character, that a token adds to the text; special tokens add none."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def _find_bytes(self, token_id: int) -> bytes:
        token = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        return token.encode()

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
if set(_BYTE_OF) != set(ByteLevel.alphabet()):
    raise ImportError("this release of tokenizers has another byte-level alphabet than GPT-2's")


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(backend.to_str())["decoder"]
    if decoder["type"] == "Sequence":
        return [inner["type"] for inner in decoder["decoders"]] == ["ByteLevel"]
    return bool(decoder["type"] == "ByteLevel")


def _token_text(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _configured_template(value: Any) -> str | None:
    """`chat_template` of a tokenizer config: a template, or a list of named ones of which `default` is taken."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
