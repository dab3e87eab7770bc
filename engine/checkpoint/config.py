"""What a checkpoint's `config.json` says, checked, with the defaults of the released configuration class.

The keys are those of contract section 1; nothing here is specific to one size: head_dim, theta, factor, EOS and the
mask id are always read from the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "nemotron_labs_diffusion"
ARCHITECTURE = "NemotronLabsDiffusionModel"
DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PARADIGMS = ("bidirectional", "block_diff")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """YaRN and the Llama-4 query scale (contract 3.2 and 3.3). Lengths are in tokens.

    `mscale` and `mscale_all_dim` are 1 and 0 where the file gives neither: the attention factor is then
    0.1 * ln(factor) + 1, as in transformers.
    """

    theta: float
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    llama_4_scaling_beta: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and special ids of one checkpoint of the family; the defaults are those of contract 1.4."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    mask_token_id: int
    pad_token_id: int | None
    block_size: int
    dtype: str
    architectures: tuple[str, ...] = (ARCHITECTURE,)

    @staticmethod
    def from_dir(path: str | Path) -> ModelConfig:
        """Reads `config.json` of a checkpoint directory. Raises CheckpointError with every problem found."""
        file = Path(path) / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{path} is not a checkpoint directory: it has no config.json")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from None
        return ModelConfig.from_dict(data, str(file))

    @staticmethod
    def from_dict(data: Any, source: str = "config.json") -> ModelConfig:
        """Checks parsed `config.json` content. Raises one CheckpointError that lists every problem found."""
        if not isinstance(data, dict):
            raise CheckpointError(f"{source} must hold a JSON object, not {type(data).__name__}")
        reader = _Reader(data)
        config = _read(reader)
        if reader.problems:
            raise CheckpointError(problem_list(f"{source} cannot be served", reader.problems))
        return config

    @property
    def eos_token_id(self) -> int:
        """The first (usually the only) EOS id."""
        return self.eos_token_ids[0]

    @property
    def q_size(self) -> int:
        """Rows of q_proj; differs from `hidden_size` in 3B and 14B."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim

    @property
    def parameter_count(self) -> int:
        """Weights of the checkpoint without draft adapter; a tied head counts once."""
        attention = 2 * self.hidden_size * (self.q_size + self.kv_size)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + tables + self.hidden_size

    def kv_bytes_per_token(self, dtype: str | torch.dtype | None = None) -> int:
        """Bytes of K and V of one token over all layers, in the checkpoint's dtype or in another."""
        return self.num_layers * 2 * self.kv_size * dtype_bytes(self.dtype if dtype is None else dtype)


def dtype_bytes(dtype: str | torch.dtype) -> int:
    """Bytes of one element. Raises ValueError for a dtype that weights and K/V cannot have."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype is {name!r}; allowed: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[name]


def problem_list(title: str, problems: list[str]) -> str:
    """One message for all problems: a title line, then one line each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{title} ({count}):", *(f"  - {problem}" for problem in problems)])


@dataclass(slots=True)
class _Reader:
    """Typed access to a JSON object that notes problems instead of stopping at the first."""

    data: dict[str, Any]
    prefix: str = ""
    problems: list[str] = field(default_factory=list)

    def note(self, key: str, value: object, allowed: str) -> None:
        self.problems.append(f"{self.prefix}{key} is {value!r}; allowed: {allowed}")

    def whole(self, key: str, default: int | None, low: int = 1) -> int:
        value = self._given(key, default)
        if value is None:
            return low
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self.note(key, value, f"an integer of at least {low}")
            return low
        return value

    def number(self, key: str, default: float | None, above: float = 0.0, low: float | None = None) -> float:
        value = self._given(key, default)
        if value is None:
            return 1.0
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or (value <= above if low is None else value < low):
            self.note(key, value, f"a number above {above:g}" if low is None else f"a number of at least {low:g}")
            return 1.0
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            self.note(key, value, "true or false")
            return default
        return value

    def token(self, key: str, default: int | None, vocab_size: int, required: bool = False) -> int | None:
        value = self.data.get(key, default)
        if value is None and not required:
            return None
        if not _is_token(value, vocab_size):
            self.note(key, value, f"a token id, 0 to {vocab_size - 1}")
            return None
        return value

    def fixed(self, key: str, default: object, allowed: tuple[object, ...], why: str) -> None:
        value = self.data.get(key, default)
        if value not in allowed:
            shown = " or ".join(json.dumps(item) for item in allowed)
            self.note(key, value, f"{shown} ({why})")

    def _given(self, key: str, default: Any) -> Any:
        value = self.data.get(key, default)
        if value is None:
            self.problems.append(f"{self.prefix}{key} is missing")
        return value


def _is_token(value: object, vocab_size: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def _read(reader: _Reader) -> ModelConfig:
    _check_family(reader)
    vocab_size = reader.whole("vocab_size", 131072)
    heads = reader.whole("num_attention_heads", 32)
    kv_heads = reader.whole("num_key_value_heads", 8)
    if heads % kv_heads:
        reader.note("num_attention_heads", heads, f"a multiple of num_key_value_heads ({kv_heads})")
    head_dim = reader.whole("head_dim", 128)
    if head_dim % 2:
        reader.note("head_dim", head_dim, "an even number (the rotary embedding turns pairs)")
    eos = _eos(reader, vocab_size)
    mask = reader.token("mask_token_id", -1, vocab_size, required=True)
    if mask is not None and mask in eos:
        reader.note("mask_token_id", mask, "an id that is not an EOS id")
    return ModelConfig(
        hidden_size=reader.whole("hidden_size", 4096),
        intermediate_size=reader.whole("intermediate_size", 14336),
        num_layers=reader.whole("num_hidden_layers", 34),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        max_position_embeddings=reader.whole("max_position_embeddings", 262144),
        rope=_rope(reader),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        bos_token_id=reader.token("bos_token_id", 1, vocab_size),
        eos_token_ids=eos,
        mask_token_id=0 if mask is None else mask,
        pad_token_id=reader.token("pad_token_id", None, vocab_size),
        block_size=reader.whole("block_size", 32),
        dtype=_dtype(reader),
        architectures=tuple(str(name) for name in reader.data.get("architectures") or (ARCHITECTURE,)),
    )


def _check_family(reader: _Reader) -> None:
    model_type = reader.data.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
        vision = isinstance(model_type, str) and model_type.endswith("_vlm")
        reader.note(
            "model_type", model_type, f'"{MODEL_TYPE}"' + (" (models with a vision tower are not served)" * vision)
        )
    architectures = reader.data.get("architectures")
    if architectures is not None and (not isinstance(architectures, list) or ARCHITECTURE not in architectures):
        reader.note("architectures", architectures, f'a list with "{ARCHITECTURE}"')
    reader.fixed("dlm_paradigm", "bidirectional", PARADIGMS, "an autoregressive checkpoint has no diffusion mode")
    reader.fixed("hidden_act", "silu", ("silu",), "the layers of the family")
    reader.fixed("attention_bias", False, (False,), "the family has no biases")
    reader.fixed("mlp_bias", False, (False,), "the family has no biases")
    reader.fixed("sliding_window", None, (None,), "the family attends to its whole context")


def _eos(reader: _Reader, vocab_size: int) -> tuple[int, ...]:
    value = reader.data.get("eos_token_id", 2)
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(_is_token(item, vocab_size) for item in ids):
        reader.note("eos_token_id", value, f"a token id or a list of them, 0 to {vocab_size - 1}")
        return (0,)
    return tuple(dict.fromkeys(ids))


def _dtype(reader: _Reader) -> str:
    key = "dtype" if "dtype" in reader.data and "torch_dtype" not in reader.data else "torch_dtype"
    value = reader.data.get(key, "bfloat16")
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if not isinstance(name, str) or name not in DTYPE_BYTES:
        reader.note(key, value, ", ".join(DTYPE_BYTES))
        return "bfloat16"
    return name


def _rope(reader: _Reader) -> RopeConfig:
    key = next((name for name in ("rope_parameters", "rope_scaling") if reader.data.get(name) is not None), None)
    if key is None:
        reader.problems.append("rope_parameters is missing; allowed: an object with rope_type yarn")
        return RopeConfig(1e6, 1.0, 1)
    data = reader.data[key]
    if not isinstance(data, dict):
        reader.note(key, data, "an object with rope_type yarn")
        return RopeConfig(1e6, 1.0, 1)
    rope = _Reader(data, prefix=f"{key}.", problems=reader.problems)
    kind = data.get("rope_type", data.get("type"))
    if kind != "yarn":
        rope.note("rope_type", kind, '"yarn"')
    for name, neutral in (("attention_factor", None), ("truncate", True)):
        if data.get(name, neutral) is not neutral:
            rope.note(name, data[name], f"{json.dumps(neutral)} (the family computes it)")
    both = bool(data.get("mscale")) and bool(data.get("mscale_all_dim"))
    theta = (rope if "rope_theta" in data else reader).number("rope_theta", 1e6, above=1.0)
    return RopeConfig(
        theta=theta,
        factor=rope.number("factor", None),
        original_max_position_embeddings=rope.whole("original_max_position_embeddings", None),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.number("mscale", None) if both else 1.0,
        mscale_all_dim=rope.number("mscale_all_dim", None) if both else 0.0,
        llama_4_scaling_beta=rope.number("llama_4_scaling_beta", None, low=0.0),
    )
