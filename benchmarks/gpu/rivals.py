"""What kernels are compared with: the same results in plain torch, eager and compiled.

Written as one would write it for speed in torch: one softmax, one argmax, nothing sorted. Noise is torch's own, so it
does less than ours: a seed does not give the same answer in another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.timing import Call

Answer = tuple[Tensor, Tensor, Tensor, Tensor]


def statistics(logits: Tensor, mask_id: int, temperature: Tensor | None) -> Answer:
    """Token, its probability, the entropy, and the margin to the second-best of each row of logits `[rows, vocab]`.

    Args:
        temperature: float32 `[rows]`; None = greedy.
    """
    logs = logits.float().log_softmax(-1)
    probabilities = logs.exp()
    entropy = -(probabilities * logs).sum(-1)
    logs[:, mask_id] = float("-inf")
    best = logs.max(-1)
    second = logs.scatter(1, best.indices[:, None], float("-inf")).amax(-1)
    tokens = best.indices
    if temperature is not None:
        noise = -torch.log(-torch.log(torch.rand_like(logs)))
        tokens = (logs / temperature[:, None] + noise).argmax(-1)
    confidence = probabilities.gather(1, tokens[:, None])[:, 0]
    return tokens, confidence, entropy, best.values - second


def unmask(
    canvas: Tensor,
    masked: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    length: Tensor,
    steps_left: Tensor,
    threshold: Tensor,
    stop_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The unmask rule (`kernels/unmask.py`) in place; masks left, the first stop id, and whether the canvas is done."""
    offsets = torch.arange(canvas.shape[1], device=canvas.device)
    inside = offsets < length[:, None]
    is_open = masked & inside
    score = torch.where(is_open, confidence, -1.0)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    masks = is_open.sum(1)
    quota = torch.maximum((masks + steps_left - 1) // steps_left, (score >= threshold[:, None]).sum(1))
    chosen = is_open & (rank < quota[:, None])
    canvas.copy_(torch.where(chosen, candidate, canvas))
    masked.copy_(masked & ~chosen)
    left = is_open & ~chosen
    is_stop = (canvas[:, :, None] == stop_ids[:, None, :]).any(-1) & inside & ~left
    width = canvas.shape[1]
    first_mask = torch.where(left, offsets, width).amin(1)
    first_stop = torch.where(is_stop, offsets, width).amin(1)
    first_stop = torch.where(first_stop < first_mask, first_stop, -1)
    masks_left = masks - quota
    return masks_left, first_stop, (masks_left == 0) | (first_stop >= 0)


def attention(query: Tensor, kv: Tensor, slots: Tensor, scale: float) -> Tensor:
    """Canvases of equal contexts: their pages gathered, then torch's attention.

    Args:
        query: `[canvases, rows, heads, head_dim]`. kv: `[slots, 2, kv_heads, head_dim]`. slots: `[canvases, keys]`.
    """
    keys, values = kv[slots].permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, scale=scale, enable_gqa=True)


def compared(
    section: Section,
    name: str,
    ours: Sequence[Call],
    eager: Sequence[Call],
    compilable: Callable[..., Any],
    inputs: Any,
) -> Row:
    """Milliseconds of one call of each, and how many times ours is faster.

    Args:
        ours, eager: calls on different inputs, see `Clock.kernel_ms`.
        compilable: what `eager` calls; inputs: the arguments of each of these calls.

    Where torch.compile fails its figures are None, and the section notes why.
    """
    clock = section.clock
    row: Row = {"ours_ms": clock.kernel_ms(ours), "eager_ms": clock.kernel_ms(eager), "compiled_ms": None}
    row |= {"over_eager": row["eager_ms"] / row["ours_ms"], "over_compiled": None}
    try:
        calls = compiled_calls(section, compilable, inputs)
        row["compiled_ms"] = clock.kernel_ms(calls)
        row["over_compiled"] = row["compiled_ms"] / row["ours_ms"]
    except Exception as error:
        section.fail(f"{name}: torch.compile", error)
    return row


def compiled_calls(section: Section, compilable: Callable[..., Any], inputs: Any) -> list[Call]:
    """Calls of the compiled function. In a rehearsal it is traced and not compiled, which takes a minute on a CPU."""
    torch._dynamo.reset()
    compiled = torch.compile(compilable, dynamic=False, backend="eager" if section.tiny else "inductor")
    return [lambda given=given: compiled(*given) for given in inputs]
