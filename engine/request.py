"""The fields of a request that change its answer, their bounds, and how a pinned request becomes a plan.

One owner of names and bounds for `run-batch`, the engine API and HTTP alike (`requests.md` sections 1, 3 and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.errors import InvalidRequest
from engine.plan import AR as AR_RUNG
from engine.plan import Decoding, Plan, Rung, audit_value, diffusion, self_speculation

DEFAULT_THRESHOLD = 0.9
MAX_STOP_STRINGS = 16
UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "repetition_penalty": (1, None),
    "min_p": (0, None),
    "typical_p": (1, None),
    "top_a": (0, None),
    "length_penalty": (1, None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "prompt_logprobs": (None,),
    "best_of": (1, None),
    "echo": (False, None),
    "use_beam_search": (False, None),
    "bad_words": ([], None),
    "allowed_token_ids": ([], None),
    "response_format": (None, {"type": "text"}),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "tools": ([], None),
    "functions": ([], None),
    "suffix": ("", None),
    "prediction": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "revision": (None, "off", False),
}
"""Fields of public clients that would change the answer and are not built: the values that change nothing pass."""

# A string or a flag is no number, and NaN is none either: lax conversion would hide the mistake in an answer.
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]


class GenerationOptions(BaseModel):
    """Sampling, limits and decoding fields. Unknown fields are ignored unless they would change the answer."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=False)

    max_tokens: Count | None = Field(None, ge=1, description="Most output tokens; null = up to the context's end.")
    min_tokens: Count = Field(0, ge=0, description="EOS and stop ids are banned at the first so many output offsets.")
    temperature: Number = Field(1.0, ge=0, le=2, description="0 = the most likely token.")
    top_p: Number = Field(1.0, gt=0, le=1, description="Nucleus: the smallest set with at least this probability.")
    top_k: Count = Field(-1, ge=-1, description="Keep the k most likely tokens; -1 or 0 = all.")
    seed: Count | None = Field(None, ge=-(2**63), lt=2**64, description="Same seed, same answer; absent = chosen.")
    n: Count = Field(1, ge=1, le=1, description="Answers per request; 1 until more is built.")
    stop: list[str] = Field(default_factory=list, max_length=MAX_STOP_STRINGS, description="Stop strings.")
    stop_token_ids: list[Count] = Field(default_factory=list, max_length=64, description="Ids that end the answer.")
    ignore_eos: Flag = Field(False, description="Go on past EOS, up to max_tokens.")
    max_thinking_tokens: Count | None = Field(None, ge=0, description="Then the end-of-thinking token is next.")

    decoding: Literal["auto", "diffusion", "ar", "self_speculation"] = Field(
        "auto", description="Anything but auto pins the mode."
    )
    block_length: Count | None = Field(None, ge=1, description="Pins the block length; at most block_size.")
    refinement_steps: Count | None = Field(None, ge=1, description="The step budget K of a block.")
    max_refinement_steps: Count | None = Field(None, ge=1, description="Ceiling of what a plan may choose.")
    min_refinement_steps: Count | None = Field(None, ge=1, description="Floor of what a plan may choose.")
    threshold: Number | None = Field(None, ge=0, le=1, description="Commit early above it; null = never early.")
    entropy_bound: Number | None = Field(
        None, ge=0, le=1000, description="Diffusion: commit early masks whose entropies, less the largest, sum to it."
    )
    remask: Number | None = Field(
        None, gt=0, le=1, description="Diffusion: once mask a token of the block again that is less likely by now."
    )
    audit: str | float | None = Field(None, description="off, score, exact, or a tolerance in (0, 1).")
    min_expected_quality: Number | None = Field(None, ge=0, le=1, description="A plan may not go below it.")
    plan: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=4096, description="Pins everything.")

    latency_slo_ms: Number | None = Field(None, gt=0, description="Total latency asked for, arrival to last byte.")
    ttft_slo_ms: Number | None = Field(None, gt=0, description="Latency asked for up to the first text.")
    on_infeasible: Literal["reject", "degrade"] | None = Field(None, description="What to do with an SLO nobody meets.")
    on_deadline: Literal["finish", "cut"] = Field("finish", description="cut: return what is committed.")
    cache_salt: str | None = Field(None, max_length=256, description="Prefixes are shared within the same salt only.")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string_is_a_list(cls, value: object) -> object:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stop_strings_are_not_empty(cls, value: list[str]) -> list[str]:
        if any(not text for text in value):
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("temperature", "top_p", "top_k", "n", "min_tokens", "ignore_eos", "on_deadline", mode="before")
    @classmethod
    def _null_means_the_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _null_means_none(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("decoding", mode="before")
    @classmethod
    def _null_means_auto(cls, value: object) -> object:
        return "auto" if value is None else value

    @field_validator("audit", mode="before")
    @classmethod
    def _audit_is_known(cls, value: object) -> object:
        return None if value is None else audit_value(value)

    @model_validator(mode="after")
    def _refuse_what_would_change_the_answer(self) -> GenerationOptions:
        for name, neutral in UNSUPPORTED_SAMPLING.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise ValueError(f"field:{name}:{name} is not supported (got {value!r}); leave it out")
        return self

    @property
    def threshold_given(self) -> bool:
        """Whether the request named `threshold`, null included."""
        return "threshold" in self.model_fields_set

    @property
    def commits_named(self) -> bool:
        """Whether the request says itself when diffusion commits, and what it takes back, other than by a budget."""
        return self.threshold_given or self.entropy_bound is not None or self.remask is not None

    def check(self, block_size: int, vocab_size: int) -> None:
        """Checks what depends on the checkpoint. Raises InvalidRequest."""
        for name in ("block_length", "refinement_steps", "max_refinement_steps", "min_refinement_steps"):
            value = getattr(self, name)
            if value is not None and value > block_size:
                raise InvalidRequest(name, f"{name} is {value}; allowed: 1 to {block_size} (the model's block size)")
        self.check_policies()
        if self.block_length is not None and (self.refinement_steps or 1) > self.block_length:
            raise InvalidRequest(
                "refinement_steps",
                f"refinement_steps is {self.refinement_steps}; allowed: 1 to {self.block_length} (block_length)",
            )
        low, high = self.min_refinement_steps, self.max_refinement_steps
        if low is not None and high is not None and low > high:
            raise InvalidRequest(
                "min_refinement_steps", f"min_refinement_steps is {low}; allowed: at most {high} (max_refinement_steps)"
            )
        for token in self.stop_token_ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest("stop_token_ids", f"stop_token_ids has {token}; allowed: 0 to {vocab_size - 1}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                "min_tokens", f"min_tokens is {self.min_tokens}; allowed: 0 to {self.max_tokens} (max_tokens)"
            )

    def check_policies(self) -> None:
        """Raises InvalidRequest where a policy of diffusion is asked of another mode."""
        for name in ("entropy_bound", "remask"):
            value = getattr(self, name)
            if value is not None and self.decoding != "diffusion":
                raise InvalidRequest(
                    name, f"{name} is {value:g} with decoding {self.decoding!r}; allowed with: 'diffusion'"
                )


def parse_options(model: type[GenerationOptions], data: Any) -> GenerationOptions:
    """Validates `data` as `model`. Raises InvalidRequest naming the first bad field, its value and what is allowed."""
    if not isinstance(data, dict):
        raise InvalidRequest("body", f"the request must be a JSON object, not {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid_request(error) from None


def invalid_request(error: ValidationError) -> InvalidRequest:
    """The first problem of a pydantic error as one sentence: field, value, what is allowed."""
    first = error.errors(include_url=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if message.startswith("field:"):
        _, field, text = message.split(":", 2)
        return InvalidRequest(field, text)
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-")) or "body"
    if first["type"] == "missing":
        return InvalidRequest(field, f"{field} is required")
    return InvalidRequest(field, f"{field} is {shown(first.get('input'))}: {message[:1].lower()}{message[1:]}")


def shown(value: object) -> str:
    """A value as an error message shows it, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def pinned_rung(options: GenerationOptions, block_size: int) -> Rung | None:
    """The single rung of a request that leaves nothing to the plan (`requests.md` section 1), else None.

    `ar` and `self_speculation` are pinned by themselves, `diffusion` with a threshold, an entropy bound or a budget, or
    without an SLO (then threshold 0.9, or the released fixed schedule for `threshold: null`). Remask alone goes with
    that threshold.
    """
    if options.decoding == "ar":
        return AR_RUNG
    length = options.block_length or block_size
    if options.decoding == "self_speculation":
        return self_speculation(length, options.threshold)
    if options.decoding != "diffusion":
        return None
    audit = "off" if options.audit is None else options.audit
    policies = options.entropy_bound, options.remask
    if options.refinement_steps is not None:
        return diffusion(length, options.refinement_steps, options.threshold, audit, *policies)
    if options.threshold_given or options.entropy_bound is not None:
        return diffusion(length, options.max_refinement_steps, options.threshold, audit, *policies)
    if options.remask is not None:
        return diffusion(length, options.max_refinement_steps, DEFAULT_THRESHOLD, audit, *policies)
    if options.latency_slo_ms is None and options.ttft_slo_ms is None:
        return diffusion(length, options.max_refinement_steps, DEFAULT_THRESHOLD, audit)
    return None


def allowed_rungs(options: GenerationOptions, ladder: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs of `ladder` that the request's own fields leave open, best first."""
    # A request for diffusion has no audit unless it asks for one; `auto` leaves that to the plan.
    audit = "off" if options.audit is None and options.decoding == "diffusion" else options.audit

    def fits(rung: Rung) -> bool:
        if options.decoding != "auto" and rung.decoding.value != options.decoding:
            return False
        if options.block_length not in (None, rung.block_length) and rung.decoding is not Decoding.AR:
            return False
        if rung.is_diffusion:
            steps = rung.refinement_steps
            if options.refinement_steps is not None and steps != options.refinement_steps:
                return False
            if options.max_refinement_steps is not None and steps > options.max_refinement_steps:
                return False
            if options.min_refinement_steps is not None and steps < options.min_refinement_steps:
                return False
            if options.threshold_given and rung.threshold != options.threshold:
                return False
            if audit is not None and rung.audit != audit:
                return False
        floor = options.min_expected_quality
        return floor is None or rung.exact or (rung.expected_quality is not None and rung.expected_quality >= floor)

    return tuple(rung for rung in ladder if fits(rung))


def unmeasured_length(options: GenerationOptions, rungs: Sequence[Rung]) -> str:
    """That none of `rungs`, which were left of a ladder, has the block length asked for; empty where one has.

    AR stays where `decoding` is `auto`: a block length is one of diffusion and drafts (`requests.md` section 1).
    """
    length = options.block_length
    if length in (None, 1) or any(rung.block_length == length for rung in rungs):
        return ""
    return f"no measured rung that is allowed has block_length {length}: name a decoding to use it"


def scheduled_plan(options: GenerationOptions, block_size: int) -> Plan | None:
    """The plan pinned by the `plan` field, as an earlier answer returned it. Raises InvalidRequest."""
    if options.plan is None:
        return None
    schedule: list[tuple[int, Rung]] = []
    for index, entry in enumerate(options.plan):
        where = f"plan.{index}"
        try:
            rung = Rung.from_dict({**entry, "audit": audit_value(entry.get("audit", "off"))})
            start = entry["from_token"]
            ordered = isinstance(start, int) and (start > schedule[-1][0] if schedule else start == 0)
            fits = 1 <= rung.refinement_steps <= rung.block_length <= block_size
            in_range = rung.threshold is None or 0 <= rung.threshold <= 1
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidRequest(
                "plan", f"{where} is not a plan entry ({error}); pass it as an answer gave it"
            ) from None
        if not (ordered and fits and in_range):
            raise InvalidRequest(
                "plan",
                f"{where} is {entry!r}; from_token must rise from 0, and 1 <= refinement_steps <= block_length <= "
                f"{block_size}",
            )
        _check_policies(rung, where)
        if rung.decoding is Decoding.SELF_SPECULATION:
            rung = self_speculation(rung.block_length, rung.threshold)
        elif rung.decoding is Decoding.AR:
            if rung.block_length != 1:
                raise InvalidRequest("plan", f"{where}.block_length is {rung.block_length}; allowed with ar: 1")
            rung = AR_RUNG
        schedule.append((start, rung))
    return Plan(ladder=(schedule[0][1],), schedule=tuple(schedule), reason="the request's own plan was followed")


def _check_policies(rung: Rung, where: str) -> None:
    """Raises InvalidRequest for a policy of a plan entry that a request of its own would be refused for."""
    try:
        fields = {"entropy_bound": rung.entropy_bound, "remask": rung.remask}
        parse_options(GenerationOptions, {"decoding": rung.decoding.value, **fields}).check_policies()
    except InvalidRequest as error:
        raise InvalidRequest("plan", f"{where}.{error.message}") from None


def resolve_plan(options: GenerationOptions, block_size: int, ladder: Sequence[Rung]) -> Plan:
    """The plan of a request without a router: pinned, or the AR-equivalent part of the checkpoint's own ladder.

    Args:
        ladder: the rungs saved beside the checkpoint, best first; empty where none are saved.

    Raises InvalidRequest where no rung is left.
    """
    scheduled = scheduled_plan(options, block_size)
    if scheduled is not None:
        return scheduled
    rung = pinned_rung(options, block_size)
    if rung is not None:
        return Plan(ladder=(rung,), reason="pinned by the request")
    rungs = allowed_rungs(options, equivalent_to_ar(ladder) if options.decoding == "auto" else ladder)
    if not rungs and options.decoding == "diffusion":
        length, audit = options.block_length or block_size, "off" if options.audit is None else options.audit
        rungs = (diffusion(length, options.max_refinement_steps, DEFAULT_THRESHOLD, audit),)
    rungs = rungs or (AR_RUNG,)
    count = "1 rung" if len(rungs) == 1 else f"{len(rungs)} rungs"
    remark = unmeasured_length(options, rungs)
    reason = f"{count} of the checkpoint's ladder that keep AR's quality"
    return Plan(ladder=rungs, reason=f"{reason}; {remark}" if remark else reason)


def equivalent_to_ar(ladder: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs of AR's quality: exact ones, and those that calibration shows to be as good (section 5)."""
    return tuple(rung for rung in ladder if rung.keeps_ar_quality)
