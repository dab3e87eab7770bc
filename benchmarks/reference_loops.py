"""The released decoding loops, ported straightforwardly (contract 4.1 to 4.4): the benchmark's opponent, and an oracle.

transformers' own Ministral-3 modules with a DynamicCache, one request at a time, temperature 0. Nothing of the engine
is used. The port avoids needless work: SDPA attention, the head only on the rows that are read, no copies of the
context for a denoise step beyond the concatenation that the released code does too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM


@dataclass(slots=True)
class ReferenceAnswer:
    """What a loop gives.

    Attributes:
        ids: new tokens only; `linear_spec_generate` may overshoot `max_new_tokens` by up to a block.
        nfe: forwards as the released loop counts them.
        canvases: the block after each denoise step, masks as the mask id.
        accepted: tokens emitted per round of self-speculation.
    """

    ids: list[int] = field(default_factory=list)
    nfe: int = 0
    canvases: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


class ContextCache(DynamicCache):
    """A DynamicCache that appends while `keep` is set, and is only read otherwise (contract 3.5)."""

    keep = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self.keep:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        return torch.cat((layer.keys, key_states), dim=-2), torch.cat((layer.values, value_states), dim=-2)


class AdaptedLinear(nn.Module):
    """o_proj with the low-rank draft weights added while `enabled` (contract 2.2), unmerged as in the released code."""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down, self.up, self.scale = nn.Parameter(down), nn.Parameter(up), scale
        self.enabled = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self.enabled:
            out = out + F.linear(F.linear(x, self.down), self.up) * self.scale
        return out


class ReferenceLoops:
    """A checkpoint directory on transformers' Ministral-3 modules, with the three released loops.

    Args:
        path: a checkpoint directory of the family.
        dtype: arithmetic type of weights and activations.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        directory = Path(path)
        raw = json.loads((directory / "config.json").read_text())
        self.mask_id: int = raw["mask_token_id"]
        self.eos_id: int = raw["eos_token_id"]
        self.block_size: int = raw["block_size"]
        self.model = ministral3(raw, dtype)
        self.model.load_state_dict(_renamed(_tensors(directory), raw), strict=True)
        self.model.to(dtype).eval().requires_grad_(False)
        self.adapters: list[AdaptedLinear] = []
        if (directory / "linear_spec_lora").is_dir():
            self._attach(directory / "linear_spec_lora")

    def _attach(self, directory: Path) -> None:
        settings = json.loads((directory / "adapter_config.json").read_text())
        tensors = load_file(directory / "adapter_model.safetensors")
        for index, layer in enumerate(self.model.model.layers):
            prefix = f"base_model.model.encoder.layers.{index}.self_attn.o_proj.lora_"
            layer.self_attn.o_proj = AdaptedLinear(
                layer.self_attn.o_proj,
                tensors[f"{prefix}A.weight"],
                tensors[f"{prefix}B.weight"],
                settings["lora_alpha"] / settings["r"],
            )
            self.adapters.append(layer.self_attn.o_proj)
        self.model.to(self.model.dtype).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is, and so everything that it is given."""
        return self.model.device

    def causal(self, tokens: Sequence[int], cache: ContextCache) -> Tensor:
        """Final hidden states `[tokens, hidden]` of a causal forward that appends its K/V."""
        cache.keep = True
        ids = torch.tensor([tokens], device=self.device)
        return self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]

    def bidirectional(self, tokens: Sequence[int], cache: ContextCache, draft: bool = False) -> Tensor:
        """Logits `[tokens, vocab]` of a forward in which the block sees the context and all of itself."""
        cache.keep = False
        decoder = self.model.model
        past = cache.get_seq_length()
        positions = torch.arange(past, past + len(tokens), device=self.device)[None]
        hidden = decoder.embed_tokens(torch.tensor([tokens], device=self.device))
        rotary = decoder.rotary_emb(hidden, position_ids=positions)
        for adapter in self.adapters:
            adapter.enabled = draft
        # The released model passes no mask here (contract 3.4). transformers' own forward would build a causal one,
        # and an explicit mask of zeros costs a sixth of the forward, so the layers are called directly.
        for layer in decoder.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=rotary,
                is_causal=False,
            )
        for adapter in self.adapters:
            adapter.enabled = False
        return self.model.lm_head(decoder.norm(hidden[0]))

    def next_token(self, hidden: Tensor) -> int:
        """The most likely token after the last row of `hidden`."""
        return int(self.model.lm_head(hidden[-1]).argmax())

    @torch.inference_mode()
    def ar_generate(self, prompt: Sequence[int], max_new_tokens: int) -> ReferenceAnswer:
        """One token per forward, greedy (contract 4.3)."""
        answer = ReferenceAnswer()
        cache = ContextCache(config=self.model.config)
        hidden = self.causal(prompt, cache)
        while True:
            answer.nfe += 1
            token = self.next_token(hidden)
            answer.ids.append(token)
            if token == self.eos_id or len(answer.ids) == max_new_tokens:
                return answer
            hidden = self.causal([token], cache)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        block_length: int,
        threshold: float | None = None,
        steps: int | None = None,
    ) -> ReferenceAnswer:
        """Block diffusion with the AR seed (contract 4.1); `threshold` None is the fixed schedule.

        `steps` is the released loop's variable of that name, which it always sets to `block_length`.
        """
        if max_new_tokens % block_length:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be a multiple of {block_length}")
        answer = ReferenceAnswer()
        cache = ContextCache(config=self.model.config)
        seed = self.next_token(self.causal(prompt, cache))
        for _ in range(max_new_tokens // block_length):
            block = torch.full((block_length,), self.mask_id, device=self.device)
            block[0] = seed
            schedule = _schedule(int((block == self.mask_id).sum()), steps or block_length)
            for commits in schedule:
                masked = block == self.mask_id
                if not masked.any():
                    break
                answer.nfe += 1
                logits = self.bidirectional(block.tolist(), cache)
                chosen = logits.argmax(-1)
                confidence = logits.softmax(-1).gather(-1, chosen[:, None])[:, 0].masked_fill(~masked, -torch.inf)
                block = torch.where(_transfer(confidence, masked, commits, threshold), chosen, block)
                answer.canvases.append(block.tolist())
                ends = (block == self.eos_id).nonzero()
                if len(ends) and not (block[: int(ends[0])] == self.mask_id).any():
                    break
            seed = self.next_token(self.causal(block.tolist(), cache))
            answer.nfe += 1
            answer.ids += block.tolist()
            if self.eos_id in answer.ids:
                answer.ids = answer.ids[: answer.ids.index(self.eos_id) + 1]
                return answer
        return answer

    @torch.inference_mode()
    def linear_spec_generate(
        self, prompt: Sequence[int], max_new_tokens: int, block_length: int, threshold: float = 0.0
    ) -> ReferenceAnswer:
        """Diffusion drafts with the adapter on, verified causally with it off (contract 4.4)."""
        answer = ReferenceAnswer(nfe=1)
        cache = ContextCache(config=self.model.config)
        token = self.next_token(self.causal(prompt, cache))
        answer.ids.append(token)
        if token == self.eos_id:
            return answer
        while len(answer.ids) < max_new_tokens:
            block = torch.full((block_length,), self.mask_id, device=self.device)
            block[0] = token
            while (masked := block == self.mask_id).any():
                answer.nfe += 1
                logits = self.bidirectional(block.tolist(), cache, draft=True)
                chosen = logits.argmax(-1)
                if threshold == 0:
                    block = torch.where(masked, chosen, block)
                    break
                confidence = logits.softmax(-1).gather(-1, chosen[:, None])[:, 0].masked_fill(~masked, -torch.inf)
                block = torch.where(_transfer(confidence, masked, 1, threshold), chosen, block)
            answer.nfe += 1
            verified = self.model.lm_head(self.causal(block.tolist(), cache)).argmax(-1)
            agreeing = (verified[:-1] == block[1:]).int().cumprod(0).sum()
            accepted = int(agreeing) + 1
            answer.accepted.append(accepted)
            if accepted < block_length:
                cache.crop(accepted - block_length)
            emitted = verified[:accepted].tolist()
            token = emitted[-1]
            if self.eos_id in emitted:
                answer.ids += emitted[: emitted.index(self.eos_id) + 1]
                return answer
            answer.ids += emitted
        return answer


def ministral3(raw: dict[str, object], dtype: torch.dtype = torch.float32) -> Ministral3ForCausalLM:
    """transformers' model with random weights for a `config.json` of the family."""
    return Ministral3ForCausalLM(ministral3_config(raw)).to(dtype).eval().requires_grad_(False)


def ministral3_config(raw: dict[str, object]) -> Ministral3Config:
    """transformers' configuration for a `config.json` of the family."""
    names = (
        "attention_dropout", "eos_token_id", "bos_token_id", "head_dim", "hidden_act", "hidden_size",
        "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "sliding_window",
        "tie_word_embeddings", "vocab_size",
    )  # fmt: skip
    return Ministral3Config(**{name: raw[name] for name in names if name in raw}, attn_implementation="sdpa")


def _tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a single-file or indexed checkpoint; never the adapter's."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return load_file(directory / "model.safetensors")
    files = set(json.loads(index.read_text())["weight_map"].values())
    return {name: tensor for file in sorted(files) for name, tensor in load_file(directory / file).items()}


def _renamed(tensors: dict[str, Tensor], raw: dict[str, object]) -> dict[str, Tensor]:
    renamed = {
        name.replace("encoder.", "model.").replace("diffusion_head.", "lm_head."): tensor.float()
        for name, tensor in tensors.items()
    }
    if raw.get("tie_word_embeddings"):
        renamed["lm_head.weight"] = renamed["model.embed_tokens.weight"]
    return renamed


def _schedule(masks: int, steps: int) -> list[int]:
    """Masks split evenly over the steps, the remainder given to the first ones (contract 4.1, step 3c)."""
    even, rest = divmod(masks, steps)
    return [even + (step < rest) for step in range(steps)]


def _transfer(confidence: Tensor, masked: Tensor, commits: int, threshold: float | None) -> Tensor:
    """Which positions to commit (contract 4.2): the best `commits`, or the best one and all confident ones."""
    chosen = torch.zeros_like(masked)
    if threshold is None:
        chosen[confidence.topk(commits).indices] = True
        return chosen
    chosen[confidence.argmax()] = True
    return (chosen | (confidence >= threshold)) & masked
