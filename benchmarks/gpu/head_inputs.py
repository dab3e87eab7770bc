"""Inputs of the denoise head, and what is asked of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.section import Section
from benchmarks.gpu.shapes import STANDARD_DEVIATION
from engine.checkpoint.config import ModelConfig
from kernels.row_statistics import RowNoise, RowRules


def random_head(section: Section, config: ModelConfig, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states `[rows, hidden]` as after a norm, and the weight `[vocab, hidden]`."""
    draw = section.draw(rows)
    hidden = torch.empty(rows, config.hidden_size, dtype=dtype, device=section.device).normal_(generator=draw)
    weight = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=section.device)
    return hidden, weight.normal_(0, STANDARD_DEVIATION, generator=draw)


def exact_head(section: Section, config: ModelConfig, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Small integers, whose products are exact in any order of adding: all forms see the same logits, many of them
    equal, so that every token can be compared."""
    draw = section.draw(rows)

    def integers(low: int, high: int, count: int) -> Tensor:
        shape = (count, config.hidden_size)
        drawn = torch.randint(low, high, shape, generator=draw, device=section.device, dtype=torch.int8)
        return drawn.to(dtype)

    return integers(-2, 3, rows), integers(-3, 4, config.vocab_size) / 64


def rules(section: Section, config: ModelConfig, rows: int, sampled: bool, banned: int = 0) -> RowRules:
    """Rules of `rows` rows; sampled ones at temperature 0.7, with `banned` ids a row that are no candidates."""
    draw, vocab = section.draw(rows), config.vocab_size

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw, device=section.device)

    noise = None
    if sampled:
        noise = RowNoise(
            temperature=torch.full((rows,), 0.7, device=section.device),
            tempered=integers(0, 2, rows).bool(),
            seeds=integers(-(2**62), 2**62, rows),
            positions=integers(0, 2**18, rows).int(),
            places=(integers(0, 3, rows) | integers(0, 32, rows) << 8).int(),
            choices=integers(0, 2, rows).int(),
        )
    return RowRules(config.mask_token_id, integers(0, vocab, rows, banned), integers(0, vocab, rows), noise)


def unmask_arguments(section: Section, config: ModelConfig, count: int, width: int) -> list[Tensor]:
    """Canvases in all states of being drafted: canvas, masked, length, steps_left, threshold and stop_ids of
    `kernels.unmask.unmask`; candidates and their confidence come from the head."""
    draw = section.draw(count)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw, device=section.device)

    canvas = integers(0, config.vocab_size, count, width)
    masked = torch.rand(count, width, generator=draw, device=section.device) < 0.6
    length = torch.full((count,), width, device=section.device)
    steps = integers(1, width, count)
    threshold = torch.rand(count, generator=draw, device=section.device)
    stops = torch.full((count, 1), config.eos_token_id, device=section.device)
    return [canvas, masked, length, steps, threshold, stops]
