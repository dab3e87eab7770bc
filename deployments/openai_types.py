"""Requests of OpenAI's endpoints with Stepdial's fields beside them, and the answers in OpenAI's shapes."""

from __future__ import annotations

from typing import Any, Literal

from openai.types import Completion, CompletionChoice, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.completion_usage import PromptTokensDetails
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

from engine.errors import InvalidRequest
from engine.request import GenerationOptions

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default of `/v1/completions`."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ApiRequest(GenerationOptions):
    """What both endpoints share."""

    model: StrictStr = Field(description="Name of the model, as `/v1/models` lists it.")
    stream: bool = Field(False, description="Server-sent events, a chunk per committed block or burst.")
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    service_tier: StrictStr | None = Field(None, description="Name of a tier, or one of OpenAI's values.")
    user: Any = None
    return_token_ids: bool = Field(False, description="Also give the output's token ids.")

    @field_validator("stream", "return_token_ids", mode="before")
    @classmethod
    def _null_is_false(cls, value: object) -> object:
        return False if value is None else value

    @field_validator("stream_options", mode="before")
    @classmethod
    def _null_is_nothing(cls, value: object) -> object:
        return {} if value is None else value

    def options(self) -> dict[str, Any]:
        """The fields for the engine that were set."""
        return self.model_dump(include=set(GenerationOptions.model_fields), exclude_unset=True)


class ChatCompletionRequest(ApiRequest):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1, description="The conversation.")
    enable_thinking: bool | None = Field(None, description="Whether the model may think before it answers.")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="Further names for the template.")

    @model_validator(mode="before")
    @classmethod
    def _newer_name_of_max_tokens(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("max_completion_tokens") is not None:
            value = data["max_completion_tokens"]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"field:max_completion_tokens:max_completion_tokens is {value!r}; allowed: an integer of at least 1"
                )
            return {**data, "max_tokens": value}
        return data

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    def template_options(self) -> tuple[bool, dict[str, Any]]:
        """Whether to think, and the other names for the template."""
        names = dict(self.chat_template_kwargs)
        thinking = names.pop("enable_thinking", False)
        return bool(thinking if self.enable_thinking is None else self.enable_thinking), names


class CompletionRequest(ApiRequest):
    """`POST /v1/completions`: text, or token ids."""

    prompt: Any = Field(description="Text, or token ids; a list of one of them is fine too.")

    @field_validator("prompt")
    @classmethod
    def _prompt_is_text_or_a_list(cls, value: object) -> object:
        if isinstance(value, (str, list)):
            return value
        raise ValueError("allowed: a string or a list of token ids")

    def one_prompt(self) -> str | list[int]:
        """The single prompt. Raises ValueError with what is allowed."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        if all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
            return list(prompt)
        if all(isinstance(part, (str, list)) for part in prompt):
            raise ValueError(f"prompt has {len(prompt)} prompts; allowed: one per request")
        raise ValueError("prompt is a mixed list; allowed: a string or a list of token ids")


def request_kind(body: Any) -> type[ChatCompletionRequest] | type[CompletionRequest]:
    """What a body of `/v1/plan` is: a chat has `messages`, a completion a `prompt`. Raises InvalidRequest."""
    if not isinstance(body, dict):
        raise InvalidRequest("body", f"the request must be a JSON object, not {type(body).__name__}")
    if ("messages" in body) == ("prompt" in body):
        found = "both" if "messages" in body else "neither"
        raise InvalidRequest(
            "messages", f"the body has {found} of messages and prompt; allowed: messages of a chat, or the prompt of a "
            "completion",
        )  # fmt: skip
    return ChatCompletionRequest if "messages" in body else CompletionRequest


FinishReason = Literal["stop", "length"]


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> CompletionUsage:
    """OpenAI's `usage`."""
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
    )


class Answer:
    """Builds the answers of one request; `tier` is echoed as OpenAI's `service_tier`."""

    def __init__(self, chat: bool, request_id: str, model: str, created: int, tier: str | None) -> None:
        self.chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{request_id}"
        self.model = model
        self.created = created
        self.tier = tier

    def opening(self) -> dict[str, Any] | None:
        """The first chunk of a chat stream, which names the role; completions have none."""
        return self.chunk("", role=True) if self.chat else None

    def chunk(
        self,
        text: str,
        finish_reason: FinishReason | None = None,
        role: bool = False,
        thinking: str = "",
        token_ids: list[int] | None = None,
        spent: CompletionUsage | None = None,
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One event of a stream."""
        choice: dict[str, Any]
        if self.chat:
            delta = ChoiceDelta(role="assistant", content="") if role else ChoiceDelta(content=text)
            if finish_reason is not None and not text:
                delta = ChoiceDelta()
            choice = ChunkChoice(index=0, delta=delta, finish_reason=finish_reason).model_dump(exclude_unset=True)
            if thinking:
                choice["delta"] = {"reasoning_content": thinking, **({"content": text} if text else {})}
            choice["logprobs"] = None
        else:
            choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
        if token_ids is not None:
            choice["token_ids"] = token_ids
        return self._event([choice], spent, extra)

    def usage_chunk(self, spent: CompletionUsage, extra: dict[str, Any]) -> dict[str, Any]:
        """The last chunk under `stream_options.include_usage`: no choices."""
        return self._event([], spent, extra)

    def whole(
        self,
        text: str,
        finish_reason: FinishReason,
        spent: CompletionUsage,
        token_ids: list[int] | None,
        extra: dict[str, Any],
        thinking: str = "",
    ) -> dict[str, Any]:
        """The answer without streaming; `thinking` becomes `reasoning_content`, apart from the content."""
        body: dict[str, Any]
        if self.chat:
            message = ChatCompletionMessage(role="assistant", content=text, refusal=None)
            choice = Choice(index=0, message=message, finish_reason=finish_reason, logprobs=None)
            body = ChatCompletion(
                id=self.id,
                choices=[choice],
                created=self.created,
                model=self.model,
                object="chat.completion",
                usage=spent,
            ).model_dump(exclude_unset=True)
        else:
            part = CompletionChoice(index=0, text=text, finish_reason=finish_reason, logprobs=None)
            body = Completion(
                id=self.id,
                choices=[part],
                created=self.created,
                model=self.model,
                object="text_completion",
                usage=spent,
            ).model_dump(exclude_unset=True)
        if thinking:
            body["choices"][0]["message"]["reasoning_content"] = thinking
        if token_ids is not None:
            body["choices"][0]["token_ids"] = token_ids
        return {**body, **self._tier(), **extra}

    def _event(
        self, choices: list[dict[str, Any]], spent: CompletionUsage | None, extra: dict[str, Any] | None
    ) -> dict[str, Any]:
        event: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **self._tier(),
        }
        if spent is not None:
            event["usage"] = spent.model_dump(exclude_unset=True)
        return {**event, **(extra or {})}

    def _tier(self) -> dict[str, Any]:
        return {} if self.tier is None else {"service_tier": self.tier}


def model_list(name: str, created: int, context: int) -> dict[str, Any]:
    """`GET /v1/models`."""
    return {"object": "list", "data": [model_entry(name, created, context)]}


def model_entry(name: str, created: int, context: int) -> dict[str, Any]:
    """One entry of it, with the context length beside OpenAI's fields."""
    model = Model(id=name, created=created, object="model", owned_by="stepdial")
    return {**model.model_dump(), "max_model_len": context}
