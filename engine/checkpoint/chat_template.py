"""Renders a chat with the checkpoint's Jinja template, in the sandbox and with the names that transformers gives it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import CheckpointError, InvalidRequest

ROLES = ("system", "developer", "user", "assistant")
PART_SEPARATOR = "\n"


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template's text.
        special_tokens: `bos_token`, `eos_token` and so on, given to the template by these names.

    Raises CheckpointError where the template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"the chat template cannot be compiled: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], enable_thinking: bool, options: Mapping[str, Any]) -> str:
        """The prompt of `messages` (already checked), up to where the answer starts.

        Raises InvalidRequest naming `messages` where the template refuses them.
        """
        names = {
            **self._special_tokens,
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **options,
            "enable_thinking": enable_thinking,
            "messages": messages,
        }
        try:
            return self._template.render(names)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest("messages", f"messages: the chat template refused them: {error}") from None


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Checks a chat and flattens each content to a string; `developer`, OpenAI's newer name, becomes `system`.

    Text parts are joined by a line break. Raises InvalidRequest naming `messages`, the place and what is allowed.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidRequest("messages", f"messages is {_shown(messages)}; allowed: a list of messages")
    if not messages:
        raise InvalidRequest("messages", "messages is empty; allowed: a list of at least one message")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("messages", f"{where} is {_shown(message)}; allowed: an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest("messages", f"{where}.role is {_shown(role)}; allowed: {', '.join(ROLES)}")
    content = _content(f"{where}.content", message.get("content"))
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise InvalidRequest("messages", f"{where} is {_shown(content)}; allowed: a string or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            allowed = 'allowed: {"type": "text", "text": string}'
            raise InvalidRequest("messages", f"{where}[{index}] is {_shown(part)}; {allowed}")
        texts.append(text)
    return PART_SEPARATOR.join(texts)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a prompt must not be."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; a prompt just contains it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()
